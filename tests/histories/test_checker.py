"""The checker rejects each wrong history for its own reason, and accepts right ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from histories.checker import check
from histories.story import Story, good

Change = Callable[[Story], object]


def violations(story: Story) -> list[str]:
    return check(list(story.calls.values()), story.events)


def test_a_right_history_has_no_violation() -> None:
    assert violations(good()) == []


#: What is wrong, how the right history becomes so, and words of the sentence that says it.
WRONG: dict[str, tuple[Change, str]] = {}


def wrong(title: str, sentence: str) -> Callable[[Change], Change]:
    def add(change: Change) -> Change:
        WRONG[title] = change, sentence
        return change

    return add


@wrong("two leases claim a proxy", "claimed p1, which lease 1 holds")
def double_claim(story: Story) -> None:
    story.says("lost claim", claimed=True, revision=9)
    story.becomes(9, name="p1")


@wrong("a claim was refused though the proxy was free", "was refused as held, but p7 is free")
def refused_though_free(story: Story) -> None:
    story.asks("lost claim", principals=["p7"])
    story.says("lost claim", name="p7")


@wrong("a claim was refused for a wrong name", "means p1, not p2")
def refused_for_another_name(story: Story) -> None:
    story.says("lost claim", name="p2")


@wrong("a claim took another name than it asked for", "means p2, not p1")
def claimed_another_name(story: Story) -> None:
    story.asks("claim p1", principals=["p2"])


@wrong("a dead lease claims", "lease 2, which is not in flight, claimed p2")
def dead_claim(story: Story) -> None:
    story.becomes(12, lease=2)
    story.asks("claim p2 again", lease=2)


@wrong("a lease claims twice", "lease 1, which is not in flight, claimed p2")
def second_claim(story: Story) -> None:
    story.becomes(12, lease=1)
    story.asks("claim p2 again", lease=1)


@wrong("a release has no effect", "acknowledges lease_released 2 asked, which has not happened")
def lost_release(story: Story) -> None:
    story.becomes(10, kind="dial_failed", lease=2, session=2, reason="other")


@wrong("a lease is there after its release", "lists other leases than")
def revived_lease(story: Story) -> None:
    row = {"lease": 2, "session": 2, "name": "p3"}
    rows = [row, *(story.calls["who holds"].reply or {})["rows"]]
    story.says("who holds", rows=rows, total=3)


@wrong("a read returns what was before", "is stale: revision 11 was received")
def stale_read(story: Story) -> None:
    story.says("try behind", revision=9)


@wrong("a read is wrong", "p1 is claimed")
def wrong_read(story: Story) -> None:
    story.says("look", claimed=False)


@wrong("a lease id is used again", "was granted lease 1, which was granted before")
def reused_lease(story: Story) -> None:
    story.becomes(11, lease=1)
    story.says("wait", lease=1)


@wrong("a lease id is left out", "was granted lease 5, not 3")
def skipped_lease(story: Story) -> None:
    story.becomes(11, lease=5)
    story.says("wait", lease=5)


@wrong("one that came later is served before a waiter", "was passed over")
def passed_over(story: Story) -> None:
    story.becomes(11, session=2)
    story.calls["try behind"], story.calls["wait"] = (
        replace(story.calls["try behind"], reply={"revision": 11, "lease": 3}),
        replace(story.calls["wait"], end=1000.0, reply={"revision": 20, "lease": None}),
    )
    story.asks("claim p2 again", lease=3)


@wrong("an acknowledged claim is gone after a restart", "lists other leases than")
def claim_lost_by_restart(story: Story) -> None:
    rows = (story.calls["who holds"].reply or {})["rows"]
    story.says("who holds", rows=rows[1:], total=1)


@wrong(
    "an acknowledged claim is not among the events",
    "acknowledges proxy_claimed 3 p2, which has not happened",
)
def claim_without_event(story: Story) -> None:
    story.becomes(12, kind="dial_failed", lease=3, session=1, reason="other")


@wrong("a reply is from the future", "has a revision that no event has")
def from_the_future(story: Story) -> None:
    story.says("last look", revision=21)


@wrong(
    "a reply has a revision that is too large",
    "acknowledges proxy_claimed 1 p1, which has not happened",
)
def too_large(story: Story) -> None:
    story.says("claim p1", revision=9)


@wrong("a reply has a revision that is too small", "lease 1 does not hold p1")
def too_small(story: Story) -> None:
    story.says("claim p1", revision=7)


@wrong("a request was done twice", "proxy_claimed was not asked for")
def done_twice(story: Story) -> None:
    story.begins("lost adopt", 1, "adopt", principals=["p7"])
    story.begins("cancel", 1, "cancel", target=story.calls["lost adopt"].seq)
    for lease in (5, 6):
        story.happens("lease_granted", lease=lease, session=1, reason="adopt")
        story.happens("proxy_claimed", name="p7", lease=lease, session=1)
        if lease == 5:
            story.happens("lease_released", lease=5, session=1, name="p7", cause="given_up")


@wrong("two calls have the same lease", "both acknowledge lease_granted 1")
def same_lease(story: Story) -> None:
    story.says("grant 2", lease=1)
    story.calls["grant 2"] = replace(story.calls["grant 2"], session=1)


@wrong("two releases say that they did it", "both acknowledge lease_released 1")
def released_twice(story: Story) -> None:
    story.says("release again", released=True)


@wrong("more is granted than is needed", "neither bootstrap nor need")
def beyond_need(story: Story) -> None:
    story.becomes(13, kind="lease_granted", lease=4, session=1, reason="need")


@wrong("a grant has a wrong reason", "by need, but the reason is bootstrap")
def wrong_reason(story: Story) -> None:
    story.becomes(6, reason="need")


@wrong("a grant was refused though it was needed", "was refused, but there is need")
def refused_though_needed(story: Story) -> None:
    granted = story.calls["grant 1"].end
    story.says("enough", revision=6)
    story.calls["enough"] = replace(story.calls["enough"], start=granted + 0.2, end=granted + 0.4)


@wrong("somebody else's lease is released", "caused lease_released of session 1")
def released_by_another(story: Story) -> None:
    story.calls["release p1"] = replace(story.calls["release p1"], session=2)


@wrong("an event gives a lease to another session", "belongs to session 1, not 2")
def another_owner(story: Story) -> None:
    story.becomes(14, session=2)


@wrong("a release was refused though the lease is its own", "belongs to session 2")
def refused_own(story: Story) -> None:
    story.calls["not mine"] = replace(story.calls["not mine"], session=2)


@wrong("events are in another order than calls", "before the call that asked for it began")
def against_real_time(story: Story) -> None:
    story.calls["claim p1"] = replace(story.calls["claim p1"], start=1000.0, end=1001.0)


@wrong("a revision is missing", "revisions 12 to 12 are missing")
def missing_revision(story: Story) -> None:
    del story.events[11]


@wrong("an event comes twice with other content", "revision 12 is told twice")
def told_twice(story: Story) -> None:
    story.events.append(story.events[11]._replace(fields={"name": "p3", "lease": 3, "session": 1}))


@wrong("a read mixes two revisions", "lists other leases than")
def mixed_read(story: Story) -> None:
    story.says("who holds", base=14, revision=14)


@wrong("a status mixes two revisions", "inflight is 0, not 1")
def mixed_status(story: Story) -> None:
    story.says("status", inflight=1)


@wrong("a session that has ended is granted a lease", "session 2 is not open")
def granted_after_close(story: Story) -> None:
    story.happens("lease_granted", lease=5, session=2, reason="need")
    story.becomes(20, count=0, before=0)


@wrong("a session ends and keeps a lease", "session 2 ended and kept lease 4")
def lease_kept(story: Story) -> None:
    story.becomes(18, kind="dial_failed", lease=4, session=2, reason="other")


@wrong("a close has no effect", "acknowledges session_ended 2, which has not happened")
def lost_close(story: Story) -> None:
    story.becomes(19, kind="dial_failed", lease=4, session=2, reason="other")


@wrong("a session ends that nobody closed", "was not asked for")
def closed_by_nobody(story: Story) -> None:
    story.calls.pop("close 2")


@wrong("a lease is released that nobody released", "was not asked for")
def released_by_nobody(story: Story) -> None:
    story.calls.pop("release p1")


@wrong("a proxy that has expired expires again", "p1 is not tracked")
def expired_twice(story: Story) -> None:
    story.happens("proxy_expired", name="p1", group="", generation=1)


@wrong("a proxy is tracked that nobody mentioned", "was not asked for")
def revived_proxy(story: Story) -> None:
    story.happens("proxy_tracked", name="p1", group="", generation=2, session=1)


@wrong("gossip changed less than it said", "says that 2 proxies changed, and 1 did")
def partial_gossip(story: Story) -> None:
    story.becomes(5, kind="dial_failed", lease=4, session=2, reason="other")


@wrong("acknowledged gossip is not tracked", "p3 is not tracked")
def lost_gossip(story: Story) -> None:
    story.asks("gossip again", proxies=[["p3", "", 1, None]])


@wrong("gossip makes a tracked proxy new", "p1 is tracked already")
def tracked_twice(story: Story) -> None:
    story.becomes(5, name="p1")
    story.asks("gossip", proxies=[["p1", "", 1, None]])


@wrong("a lease that has claimed did not claim in time", "lease 1 has claimed p1")
def claimed_and_timed_out(story: Story) -> None:
    story.becomes(14, cause="claim_timeout")


@wrong("an adoption took a claimed proxy", "claimed p2, which lease 3 holds")
def adopted_held(story: Story) -> None:
    story.asks("adopt", principals=["p2"])
    story.says("adopt", name="p2")
    story.becomes(17, name="p2")
    story.becomes(18, name="p2")


@wrong("a start is left out", "epoch 3 follows 1")
def epoch_left_out(story: Story) -> None:
    story.becomes(13, epoch=3)


@wrong("the connection count is another one", "the connection count is 1, not 2")
def wrong_count(story: Story) -> None:
    story.asks("count", count=2)


@pytest.mark.parametrize("title", WRONG)
def test_a_wrong_history_is_rejected_for_its_own_reason(title: str) -> None:
    change, sentence = WRONG[title]
    story = good()
    change(story)
    found = violations(story)
    assert any(sentence in each for each in found), found


def test_there_are_at_least_twenty_wrong_histories() -> None:
    assert len(WRONG) >= 20


# -- calls without a reply, and what comes of itself --------------------------------------------


@pytest.mark.parametrize(
    "label",
    [
        "gossip",
        "grant 2",
        "claim p1",
        "claim p2",
        "wait",
        "release p2",
        "adopt",
        "close 2",
        "count",
    ],
)
def test_a_call_without_a_reply_may_have_happened(label: str) -> None:
    story = good()
    story.unanswered(label)
    assert violations(story) == []


@pytest.mark.parametrize(
    ("op", "fields"),
    [
        ("try_acquire", {}),
        ("acquire", {}),
        ("claim", {"lease": 2, "principals": ["p1"]}),
        ("release", {"lease": 3}),
        ("adopt", {"principals": ["p8"]}),
        ("close", {}),
        ("track_expected", {"proxies": [["p5", "", 1, None]]}),
        ("set_connection_count", {"count": 7}),
    ],
)
def test_a_call_without_a_reply_may_not_have_happened(op: str, fields: dict[str, object]) -> None:
    story = good()
    story.begins("lost", 1, op, **fields)
    assert violations(story) == []


def test_what_one_lost_call_explains_is_not_explained_twice() -> None:
    story = good()
    story.unanswered("grant 1")
    story.unanswered("release p1")
    assert violations(story) == []
    story.happens("lease_released", lease=3, session=1, name="p2", cause="asked")
    (found,) = violations(story)
    assert "revision 21: lease_released was not asked for" in found


def test_a_lost_grant_that_was_cancelled_came_before_the_cancellation() -> None:
    story = good()
    story.unanswered("wait")
    story.begins("cancel", 1, "cancel", target=story.calls["wait"].seq)
    story.ends("cancel", cancelled=True)
    assert violations(story) == []
    story.says("cancel", revision=10)
    assert any("was not asked for" in each for each in violations(story))


def test_agents_that_were_not_recorded_need_no_calls() -> None:
    story = good()
    story.calls = {label: call for label, call in story.calls.items() if call.session != 2}
    assert violations(story) == []


def test_the_same_event_from_two_watchers_is_one_event() -> None:
    story = good()
    story.events += story.events[5:15]
    assert violations(story) == []


def test_a_call_that_was_refused_leaves_no_event() -> None:
    story = good()
    story.says("claim p1", error="unavailable", message="")
    assert any("was not asked for" in each for each in violations(story))


def test_a_copy_of_a_refused_call_may_run_after_a_restart_and_not_before() -> None:
    story = good()
    story.happens("connection_count", count=0, before=1)
    story.begins("no count", 1, "set_connection_count", count=0)
    story.calls["no count"] = replace(story.calls["no count"], start=story.calls["count"].end)
    story.ends("no count")
    story.reads("refused", 1, "try_acquire", {"lease": None})
    story.calls["refused"] = replace(story.calls["enough"], session=1, seq=99)
    copy = {"lease": 5, "session": 1, "reason": "need"}
    story.happens("proxy_tracked", name="p5", group="", generation=1, session=1)
    story.begins("gossip p5", 1, "track_expected", proxies=[["p5", "", 1, None]])
    story.ends("gossip p5", changed=1)
    story.happens("lease_granted", **copy)
    assert violations(story) == []
    story.calls["refused"] = replace(story.calls["refused"], reply={"revision": 14, "lease": None})
    story.calls["refused"] = replace(story.calls["refused"], start=500.0, end=501.0)
    assert any("was not asked for" in each for each in violations(story))


def test_a_copy_of_a_call_that_was_unavailable_may_run_later() -> None:
    story = good()
    gone = {"error": "unavailable", "message": ""}
    story.reads("refused", 1, "adopt", gone, principals=["p7"])
    story.happens("lease_granted", lease=5, session=1, reason="adopt")
    story.happens("proxy_claimed", name="p7", lease=5, session=1)
    assert violations(story) == []


def fair(late: int) -> Story:
    """Return a story in which session 1 waits while session 2 is granted as many leases."""
    story = Story()
    story.happens("daemon_started", epoch=1, server="1", pid=7)
    for session in (1, 2):
        story.begins(f"open {session}", session, "open")
        story.happens("session_opened", session=session, uid=0, pid=8, name="", command="")
        story.ends(f"open {session}", session=session)
    story.begins("first", 2, "try_acquire")
    story.happens("lease_granted", lease=1, session=2, reason="bootstrap")
    story.ends("first", lease=1)
    story.begins("wait", 1, "acquire")
    for number in range(late):
        story.begins(f"wait {number}", 2, "acquire")
    rows = [{"session": n, "waiting": w, "leases": n - 1} for n, w in ((1, 1), (2, late))]
    listing = {"of": "sessions", "base": story.revision, "cursor": None, "rows": rows}
    story.reads("who waits", 0, "snapshot", listing, of="sessions")
    for lease in range(1, late + 2):
        label, session = (f"wait {lease - 1}", 2) if lease <= late else ("wait", 1)
        story.begins(f"release {lease}", 2, "release", lease=lease)
        story.happens("lease_released", lease=lease, session=2, name=None, cause="asked")
        story.ends(f"release {lease}", released=True)
        story.happens("lease_granted", lease=lease + 1, session=session, reason="bootstrap")
        story.ends(label, lease=lease + 1)
    return story


def test_two_grants_to_another_session_are_fair_while_one_waits_and_three_are_not() -> None:
    assert violations(fair(2)) == []
    assert any("was passed over" in each for each in violations(fair(3)))


def opened() -> Story:
    """Return a story with two sessions, of which the first is granted lease 1."""
    story = Story()
    story.happens("daemon_started", epoch=1, server="1", pid=7)
    for session in (1, 2):
        story.begins(f"open {session}", session, "open")
        story.happens("session_opened", session=session, uid=0, pid=8, name="", command="")
        story.ends(f"open {session}", session=session)
    story.begins("first", 1, "try_acquire")
    story.happens("lease_granted", lease=1, session=1, reason="bootstrap")
    story.ends("first", lease=1)
    return story


def pass_on(story: Story, lease: int, owner: int, heir: int) -> None:
    """Let a session release its only lease, and another one be granted the next."""
    story.begins(f"release {lease}", owner, "release", lease=lease)
    story.happens("lease_released", lease=lease, session=owner, name=None, cause="asked")
    story.ends(f"release {lease}", released=True)
    story.happens("lease_granted", lease=lease + 1, session=heir, reason="bootstrap")


def look_at_waiting(story: Story, **waiting: int) -> None:
    rows = [{"session": n, "waiting": waiting.get(f"of_{n}", 0), "leases": 2 - n} for n in (1, 2)]
    listing = {"of": "sessions", "base": story.revision, "cursor": None, "rows": rows}
    story.reads("who waits", 0, "snapshot", listing, of="sessions")


@pytest.mark.parametrize("refusal", [{"lease": None}, {"error": "unavailable", "message": ""}])
def test_a_grant_to_another_that_waits_is_not_taken_for_the_copy_of_a_refused_call(
    refusal: dict[str, object],
) -> None:
    """An agent that is killed never reads its grant: nobody can say for which call it was."""
    story = opened()
    story.reads("refused", 2, "try_acquire", refusal)
    for session in (1, 2):
        story.begins(f"wait {session}", session, "acquire")
    look_at_waiting(story, of_1=1, of_2=1)
    story.happens("daemon_started", epoch=2, server="1", pid=9)
    pass_on(story, 1, owner=1, heir=2)
    pass_on(story, 2, owner=2, heir=1)
    story.ends("wait 1", lease=3)
    story.happens("daemon_started", epoch=3, server="1", pid=10)
    assert violations(story) == []


@pytest.mark.parametrize("op", ["try_acquire", "acquire"])
def test_a_grant_to_an_earlier_call_of_a_waiter_is_not_taken_for_the_copy_of_a_refused_call(
    op: str,
) -> None:
    story = opened()
    story.begins("given up", 1, "acquire")
    story.begins("wait", 1, "acquire")
    look_at_waiting(story, of_1=2)
    story.reads("refused", 1, op, {"lease": None})
    story.happens("daemon_started", epoch=2, server="1", pid=9)
    pass_on(story, 1, owner=1, heir=1)
    pass_on(story, 2, owner=1, heir=1)
    story.ends("wait", lease=3)
    story.happens("daemon_started", epoch=3, server="1", pid=10)
    assert violations(story) == []


def test_of_a_copy_and_a_call_without_a_reply_the_one_that_must_come_first_is_taken() -> None:
    """The copy cannot run after a second restart; the call that waits can."""
    story = opened()
    story.reads("refused", 2, "try_acquire", {"lease": None})
    story.begins("lost", 2, "acquire")
    for epoch, owner in ((2, 1), (3, 2)):
        story.happens("daemon_started", epoch=epoch, server="1", pid=9)
        pass_on(story, epoch - 1, owner=owner, heir=2)
    assert violations(story) == []
    del story.calls["refused"]
    assert any("was not asked for" in each for each in violations(story))
