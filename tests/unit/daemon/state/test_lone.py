"""Which missing proxies only one session mentions."""

from __future__ import annotations

from trackd.rules.mentions import Mentions
from trackd.state.lone import MOST, LoneMentions

TTL = 30.0


class Gossip:
    """Sessions that mention names, one message each."""

    def __init__(self) -> None:
        self.mentions = Mentions()
        self.lone = LoneMentions()

    def say(self, by: int, *names: str) -> None:
        self.mentions.add(self.mentions.last + 1, names, 100.0, TTL, by)
        self.lone.note(self.mentions, by)

    def is_lone(self, name: str, now: float = TTL) -> bool:
        return self.lone.has(name, TTL, now)


def test_a_name_that_one_session_mentions_and_another_leaves_out_is_lone() -> None:
    gossip = Gossip()
    gossip.lone.begin("p1", 0.0)
    gossip.say(1, "p1", "p2")
    assert not gossip.is_lone("p1"), "nobody else has gossiped"
    gossip.say(2, "p2")
    assert not gossip.is_lone("p1", now=TTL - 1), "whoever knows it may be about to say so"
    assert gossip.is_lone("p1")
    assert not gossip.is_lone("p2"), "it is not looked at"
    gossip.say(1, "p1", "p2")
    assert gossip.is_lone("p1")
    gossip.say(2, "p1", "p2")
    gossip.say(1, "p1", "p2")
    gossip.say(2, "p2")
    assert not gossip.is_lone("p1"), "another session has mentioned it"


def test_who_has_not_repeated_it_since_it_is_missing_does_not_count() -> None:
    gossip = Gossip()
    gossip.say(1, "p1")
    gossip.lone.begin("p1", 0.0)
    gossip.say(2, "p2")
    assert not gossip.is_lone("p1"), "nobody has mentioned it since"
    gossip.say(1, "p1")
    assert gossip.is_lone("p1")


def test_the_time_counts_from_when_it_is_missing() -> None:
    assert MOST == 256
    gossip = Gossip()
    gossip.lone.begin("p1", 40.0)
    gossip.say(1, "p1")
    gossip.say(2, "p2")
    assert not gossip.is_lone("p1", now=40.0)
    assert gossip.is_lone("p1", now=40.0 + TTL)


def test_a_name_that_is_claimed_or_expired_is_not_looked_at() -> None:
    gossip = Gossip()
    for name in ("p1", "p2"):
        gossip.lone.begin(name, 0.0)
    gossip.say(1, "p1", "p2")
    gossip.say(2, "p3")
    gossip.lone.end("p1")
    assert not gossip.is_lone("p1")
    gossip.mentions.drop(["p2"])
    gossip.say(2, "p3")
    assert not gossip.is_lone("p2")
    gossip.lone.end("p2")  # nothing to do


def test_so_many_names_are_looked_at_and_no_more() -> None:
    gossip = Gossip()
    names = [f"p{number}" for number in range(MOST + 1)]
    for name in names:
        gossip.lone.begin(name, 0.0)
    gossip.say(1, *names)
    gossip.say(2, "p")
    assert [name for name in names if gossip.is_lone(name)] == names[:MOST]
    gossip.lone.end("p0")
    gossip.lone.begin(names[-1], 0.0)
    gossip.say(1, *names)
    gossip.say(2, "p")
    assert gossip.is_lone(names[-1])
