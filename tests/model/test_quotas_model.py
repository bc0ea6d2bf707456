"""Quotas against plain counting: who is refused what, and with which numbers.

The model keeps for each user lists of what it has: sessions, leases, requests that wait, and
replies that are remembered for it. Before each request it counts them, and says whether a quota is
met.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from helpers.desk_machine import UID, DeskMachine, picks, run_machine
from helpers.writer import AgentOf
from trackd.sessions.use import REPLY_OVERHEAD

USERS = (UID, UID + 1, 0)
ALLOWED = {"sessions": 2, "leases": 2, "waiters": 1, "reply_bytes": 2000}
TARGET = 3


@dataclass
class Has:
    """A session, and what it has.

    Attributes:
        agent: whose it is.
        uid: the user.
        leases: ids.
        waiting: numbers of its requests that wait, in order.
        replies: the bytes that each remembered reply takes, by the number of its request.
        lasting: the numbers of those that a restart brings back.
        done: those that it is done with, which are dropped with its next change, or when the user
            has no room.
    """

    agent: AgentOf
    uid: int
    leases: set[int] = field(default_factory=set)
    waiting: list[int] = field(default_factory=list)
    replies: dict[int, int] = field(default_factory=dict)
    lasting: set[int] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)


class Quotas(DeskMachine):
    SETTINGS = {f"quota_{name}": most for name, most in ALLOWED.items()}  # noqa: RUF012
    SETTINGS |= {"max_ttl": 1e7}

    def __init__(self) -> None:
        super().__init__()
        self.open_now: list[Has] = []
        self.queue: list[tuple[Has, int]] = []
        self.finished: list[Has] = []  # those that are done with replies, in order

    @initialize()
    def begin(self) -> None:
        """Let root mention what is wanted."""
        has = self.open_one(0)
        assert has is not None
        rows = [[f"p{number}", "", 1, 1e6] for number in range(TARGET)]
        reply = self.ask(has.agent, "track_expected", proxies=rows)
        self.remember(has, reply, lasting=True)

    # -- the model --------------------------------------------------------------------------------

    def used(self, uid: int) -> dict[str, int]:
        of_user = [has for has in self.open_now if has.uid == uid]
        waiters = sum(len(has.waiting) for has in of_user)
        return {
            "sessions": len(of_user),
            "leases": sum(len(has.leases) for has in of_user) + waiters,
            "waiters": waiters,
            "reply_bytes": sum(
                size
                for has in of_user
                for kept in (has.replies, has.done)
                for size in kept.values()
            ),
        }

    def drop_done(self, has: Has) -> None:
        has.done = {}
        if has in self.finished:
            self.finished.remove(has)

    def make_room(self, uid: int) -> None:
        """Drop replies that are done while there is no room, those of one session after another."""
        of_user = [has for has in self.finished if has.uid == uid]
        while self.met(uid, "reply_bytes") and of_user:
            self.drop_done(of_user.pop(0))

    def met(self, uid: int, *quotas: str) -> tuple[str, int, int] | None:
        """Return the first of some quotas that a user meets; root meets none."""
        used = self.used(uid)
        for quota in quotas:
            if uid != 0 and used[quota] >= ALLOWED[quota]:
                return quota, used[quota], ALLOWED[quota]
        return None

    def remember(self, has: Has, reply: dict[str, Any] | None, *, lasting: bool) -> None:
        assert reply is not None
        seq = reply["seq"]
        has.replies[seq] = len(self.arrived[has.agent.token, seq].frame) + REPLY_OVERHEAD
        if lasting:
            has.lasting.add(seq)
            self.drop_done(has)

    @property
    def free(self) -> int:
        return TARGET - sum(len(has.leases) for has in self.open_now)

    def serve(self) -> None:
        """Take in the grants to those that wait; rule 13 has a model of its own."""
        while self.queue and self.free:
            granted = [
                (has, seq) for has, seq in self.queue if (has.agent.token, seq) in self.arrived
            ]
            assert granted, "a lease is free, and nobody that waits gets it"
            for has, seq in granted:
                body = self.arrived[has.agent.token, seq].body
                self.queue.remove((has, seq))
                has.waiting.remove(seq)
                has.leases.add(body["lease"])
                self.remember(has, body, lasting=True)

    def is_refused(self, reply: dict[str, Any] | None, met: tuple[str, int, int] | None) -> bool:
        """Check whether a reply is the refusal that a quota requires."""
        if met is None:
            assert reply is None or "error" not in reply
            return False
        assert reply is not None
        assert reply["error"] == "quota_exceeded"
        assert (reply["quota"], reply["used"], reply["allowed"]) == met
        return True

    # -- what happens -----------------------------------------------------------------------------

    def open_one(self, uid: int) -> Has | None:
        agent = self.agent(200 + len(self.sent), uid)  # no pid is used again
        met = self.met(uid, "sessions")
        if self.is_refused(self.ask(agent, "open"), met):
            return None
        self.open_now.append(Has(agent, uid))
        return self.open_now[-1]

    @precondition(lambda self: len(self.open_now) < 8)
    @rule(uid=st.sampled_from(USERS))
    def open(self, uid: int) -> None:
        self.open_one(uid)

    @rule(pick=picks, op=st.sampled_from(("try_acquire", "acquire")))
    def acquire(self, pick: int, op: str) -> None:
        has = self.open_now[pick % len(self.open_now)]
        seq = next(has.agent.numbers)
        is_free = self.free > 0
        self.make_room(has.uid)
        room = self.met(has.uid, "reply_bytes")
        met = room or self.met(has.uid, "leases")
        if op == "acquire" and not is_free:
            met = met or self.met(has.uid, "waiters")
        reply = self.ask(has.agent, op, seq=seq)
        if self.is_refused(reply, met):
            if room is None:
                self.remember(has, reply, lasting=False)
        elif is_free:
            assert reply is not None
            has.leases.add(reply["lease"])
            self.remember(has, reply, lasting=True)
        elif op == "acquire":
            assert reply is None
            has.waiting.append(seq)
            self.queue.append((has, seq))
        else:
            assert reply is not None
            assert reply["lease"] is None
            self.remember(has, reply, lasting=False)

    @precondition(lambda self: any(has.leases for has in self.open_now))
    @rule(pick=picks)
    def release(self, pick: int) -> None:
        """Release one, which no quota refuses; its reply is remembered where there is room."""
        of_all = [(lease, has) for has in self.open_now for lease in has.leases]
        lease, has = sorted(of_all, key=lambda each: each[0])[pick % len(of_all)]
        has_room = self.met(has.uid, "reply_bytes") is None
        reply = self.ask(has.agent, "release", lease=lease)
        assert reply is not None
        assert reply["released"]
        has.leases.remove(lease)
        if has_room:
            self.remember(has, reply, lasting=True)
        self.serve()

    @rule(pick=picks)
    def release_nothing(self, pick: int) -> None:
        has = self.open_now[pick % len(self.open_now)]
        has_room = self.met(has.uid, "reply_bytes") is None
        reply = self.ask(has.agent, "release", lease=10_000)
        if has_room:
            self.remember(has, reply, lasting=False)

    @rule(pick=picks)
    def mark_done(self, pick: int) -> None:
        """Say that all replies have arrived; those of requests that wait have not.

        This is a change at once: numbers that were never sent are done, too, with more gaps than a
        note of the store takes.
        """
        has = self.open_now[pick % len(self.open_now)]
        never_sent = [next(has.agent.numbers) for _ in range(14)]
        numbers = sorted({*has.replies, *never_sent[::2]})
        done = [bound for seq in numbers for bound in (seq, seq)]
        self.ask(has.agent, "heartbeat", done=done)
        has.replies, has.lasting = {}, set()
        self.drop_done(has)

    @rule(pick=picks)
    def mark_lasting_done(self, pick: int) -> None:
        """Say it of a few that a restart brings back: they count until they are in the way."""
        has = self.open_now[pick % len(self.open_now)]
        numbers = sorted(has.lasting)[: 16 - len(has.done)]
        if numbers:
            done = [bound for seq in numbers for bound in (seq, seq)]
            self.ask(has.agent, "heartbeat", done=done)
            has.done |= {seq: has.replies.pop(seq) for seq in numbers}
            has.lasting -= set(numbers)
            if has not in self.finished:
                self.finished.append(has)

    @precondition(lambda self: len(self.open_now) > 1)
    @rule(pick=picks, how=st.sampled_from(("close", "exit")))
    def end(self, pick: int, how: str) -> None:
        has = self.open_now.pop(pick % len(self.open_now))
        self.drop_done(has)
        self.queue = [each for each in self.queue if each[0] is not has]
        if how == "close":
            self.ask(has.agent, "close")
        else:
            self.exits(has.agent)
        self.serve()

    @rule()
    def daemon_is_killed(self) -> None:
        """Kill it; a restart forgets the replies that changed nothing, and what was done last."""
        self.kill()
        for has in self.open_now:
            has.replies |= has.done
            has.lasting |= has.done.keys()
            self.drop_done(has)
            has.replies = {seq: size for seq, size in has.replies.items() if seq in has.lasting}
        for has, seq in self.queue:  # so that they are answered on this connection
            assert self.ask_again(has.agent, seq) is None

    @invariant()
    def status_counts_the_same(self) -> None:
        if self.open_now:
            root = AgentOf(0, None, 0)
            reply = self.desk.ask({"op": "status", "seq": 0}, root.peer)
            assert reply is not None
            shown = {each["uid"]: each for each in reply["users"]}
            for uid in {has.uid for has in self.open_now}:
                used = self.used(uid)
                assert {name: shown[uid][name] for name in used} == used
            assert shown.keys() == {has.uid for has in self.open_now}


def test_quotas_refuse_what_plain_counting_says() -> None:
    run_machine(Quotas, examples=30, steps=40)


@pytest.mark.slow
def test_quotas_refuse_for_longer_what_plain_counting_says() -> None:
    run_machine(Quotas, examples=100, steps=50)
