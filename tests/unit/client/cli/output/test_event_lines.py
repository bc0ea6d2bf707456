"""A sentence for each event."""

from __future__ import annotations

from typing import Any

import pytest

from trackd_client.cli.output import event_lines
from trackd_client.cli.output.event_lines import People
from trackd_client.core.event import Event


def event(kind: str, **fields: Any) -> Event:
    return Event(7, 1.0, 2.0, kind, fields)


PROXY = {"name": "p1", "group": "g", "generation": 3}


@pytest.mark.parametrize(
    ("happened", "words"),
    [
        (
            event("session_opened", session=3, uid=5, pid=9, name="", command="agent.py"),
            "session 3 opened by pid 9 agent.py, uid 5",
        ),
        (
            event("session_opened", session=3, uid=5, pid=9, name="a", command="", host="h1"),
            "session 3 opened by pid 9 a on h1, uid 5",
        ),
        (
            event(
                "dials_resumed",
                scope="host",
                session=None,
                why="asked",
                by_uid=0,
                by_pid=6,
                by_host="h1",
            ),
            "dials of the host go on: by an admin (uid 0, pid 6 on h1)",
        ),
        (
            event("session_ended", session=3, reason="process_exited", name="a", pid=9),
            "session 3 of pid 9 a ended: its process exited",
        ),
        (
            event("lease_granted", lease=4, session=1, reason="need"),
            "lease 4 granted to session 1 (pid 8 known): a tunnel was missing",
        ),
        (
            event("lease_released", lease=4, session=1, name=None, cause="claim_timeout"),
            "lease 4 released, which had claimed nothing: it did not claim in time",
        ),
        (
            event(
                "lease_released", lease=4, session=1, name="p1", cause="admin", by_uid=0, by_pid=6
            ),
            "lease 4 released, which held p1: by an admin (uid 0, pid 6)",
        ),
        (
            event("dial_failed", lease=4, session=1, reason="timeout"),
            "the dial with lease 4 of session 1 (pid 8 known) timed out",
        ),
        (
            event(
                "dials_paused",
                scope="host",
                session=1,
                reason="rate",
                failures=2,
                until=3.0,
                retry_after=20.0,
            ),
            (
                "dials of the host pause after 2 failed dials: the last one of session 1"
                " (pid 8 known) met a rate limit, and should wait for 20 s"
            ),
        ),
        (
            event("dials_paused", scope="session", session=2, reason="auth", failures=1, until=3.0),
            "dials of session 2 pause after 1 failed dial: the last one was not let in",
        ),
        (
            event("dials_resumed", scope="host", session=2, why="held"),
            "dials of the host go on: a dial reached a claimed proxy",
        ),
        (
            event("dials_resumed", scope="session", session=2, why="asked", by_uid=0, by_pid=6),
            "dials of session 2 go on: by an admin (uid 0, pid 6)",
        ),
        (
            event("lease_stale", lease=4, session=7, name="p1"),
            "lease 4 of session 7, which holds p1, is stale: it reports no sign of life any more",
        ),
        (
            event("lease_stale", lease=4, session=7, name=None),
            "lease 4 of session 7 is stale: it reports no sign of life any more",
        ),
        (
            event("lease_released", lease=4, session=1, name="p1", cause="stale"),
            "lease 4 released, which held p1: its tunnel gave no sign of life",
        ),
        (
            event("lease_offered", name="p1", lease=4, session=1),
            "p1 is offered to other agents by lease 4 of session 1 (pid 8 known)",
        ),
        (
            event("lease_renamed", lease=4, session=1, name="p1", before="host-7"),
            (
                "host-7, which lease 4 of session 1 (pid 8 known) holds, is now called p1: gossip"
                " names it so"
            ),
        ),
        (
            event("lease_released", lease=4, session=1, name="p1", cause="handed_over"),
            "lease 4 released, which held p1: its tunnel is replaced",
        ),
        (
            event("proxy_claimed", name="p1", lease=4, session=2),
            "p1 claimed by lease 4 of session 2",
        ),
        (
            event("proxy_tracked", session=1, **PROXY),
            "p1 is tracked, generation 3 of group g, says session 1 (pid 8 known)",
        ),
        (
            event("proxy_changed", old_group="", old_generation=2, session=2, **PROXY),
            "p1: generation 2 became generation 3 of group g, says session 2",
        ),
        (
            event("proxy_addressed", name="p1", address="10.0.0.1:3024", session=2),
            "p1 can be dialled at 10.0.0.1:3024, says session 2",
        ),
        (
            event("proxy_addressed", name="p1", address=None, session=None),
            "p1 has no address any more",
        ),
        (
            event("proxy_marked", name="p1", terminating=True, session=2),
            "p1 is terminating, says session 2",
        ),
        (
            event("proxy_marked", name="p1", terminating=False, session=None),
            "p1 is not terminating any more, nobody has said it again",
        ),
        (
            event("proxy_expired", **PROXY),
            "p1 expired, generation 3 of group g: gossip stopped naming it",
        ),
        (
            event("proxy_forgotten", by_uid=0, by_pid=6, **PROXY),
            "p1 forgotten, generation 3 of group g: by an admin (uid 0, pid 6)",
        ),
        (event("connection_count", count=3, before=0), "connection count set to 3, was 0"),
        (event("daemon_started", epoch=2, server="1", pid=5), "daemon 1 started, pid 5, epoch 2"),
        (event("gap", after=4, newest=9), "GAP: the events after 4 up to 9 are lost"),
        (event("gap", after=9, newest=2), "GAP: the daemon has lost its state"),
        (
            event("snapshot", revision=7, proxies=[1], leases=[], sessions=[]),
            "snapshot: 1 proxy, 0 leases, 0 sessions",
        ),
        (event("of_tomorrow", what="\x1b[2J"), "of_tomorrow what=\\x1b[2J"),
    ],
)
def test_every_event_is_a_sentence(happened: Event, words: str) -> None:
    people = People([{"session": 1, "pid": 8, "name": "known", "command": ""}])
    assert words in event_lines.format_event(happened, people)


def test_every_kind_of_event_has_a_sentence_and_a_colour() -> None:
    assert event_lines._SENTENCES.keys() == event_lines.STYLES.keys()
