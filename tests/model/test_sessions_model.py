"""Sessions against a dictionary: which are open, how the others ended, and what each reply says.

The model keeps for each token whether its session is open and since when it is silent, or why and
when it ended. Processes come and go, also while the daemon is away, and pids are used again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from helpers.desk_machine import UID, DeskMachine, picks, run_machine
from helpers.writer import AgentOf
from trackd.sessions.identity import Peer

TTL = 30.0
#: Seconds for which the daemon remembers how a session ended.
REMEMBERED = 600.0


@dataclass
class Known:
    """What is so of a token. Each is either open, or has ended, or was never opened.

    Attributes:
        agent: whose it is.
        opened: the number of its session, or None.
        heard: when the session gave the last sign of life.
        reason: why it ended, or None.
        ended: when.
        forgotten: whether the daemon may not know how it ended.
    """

    agent: AgentOf
    opened: int | None = None
    heard: float = 0.0
    reason: str | None = None
    ended: float = 0.0
    forgotten: bool = False

    @property
    def is_open(self) -> bool:
        return self.opened is not None and self.reason is None


class Sessions(DeskMachine):
    SETTINGS = {"heartbeat_ttl": TTL}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.tokens: list[Known] = []
        self.last = 0

    def end(self, known: Known, reason: str) -> None:
        known.reason, known.ended = reason, self.clock.now
        self.forget_long_ended()

    def forget_long_ended(self) -> None:
        for each in self.tokens:
            if each.reason is not None and each.ended + REMEMBERED < self.clock.now:
                each.forgotten = True

    # -- what happens -----------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        for number, pid in enumerate((0, 101, 0)):
            self.draw(pid)
            self.open(number)

    @precondition(lambda self: len(self.tokens) < 12)
    @rule(pid=st.sampled_from((0, 0, 101, 102)))
    def another_agent(self, pid: int) -> None:
        self.draw(pid)
        self.open(len(self.tokens) - 1)

    def draw(self, pid: int) -> None:
        """Let a process draw a token; it may be one that has others."""
        others = [each.agent for each in self.tokens if each.agent.peer.pid == pid != 0]
        if others and others[-1].process is not None and pid in self.host.alive:
            agent = self.agent()
            agent.process, agent.peer = others[-1].process, others[-1].peer
        else:
            agent = self.agent(pid)
        self.tokens.append(Known(agent))

    @precondition(lambda self: self.tokens)
    @rule(pick=picks)
    def open(self, pick: int) -> None:
        known = self.tokens[pick % len(self.tokens)]
        is_alive = known.agent.process is None or self.is_alive(known.agent)
        if not is_alive:  # the dead do not ask
            return
        reply = self.ask(known.agent, "open", name="x")
        assert reply is not None
        if known.forgotten and known.reason:
            assert "error" not in reply, "nobody knows of it any more"
            known.opened = known.reason = None
        if known.opened is None:
            self.last += 1
            known.opened, known.forgotten = self.last, False
        if known.reason is not None:
            assert (reply["error"], reply["reason"]) == ("session_ended", known.reason)
            return
        known.heard = self.clock.now
        ttl = TTL if known.agent.process is None else None
        assert (reply["session"], reply["heartbeat_ttl"]) == (known.opened, ttl)

    @precondition(lambda self: self.tokens)
    @rule(pick=picks, other=st.sampled_from(("user", "process")))
    def open_as_another(self, pick: int, other: str) -> None:
        """Open with somebody else's token."""
        known = self.tokens[pick % len(self.tokens)]
        if known.opened is None or known.forgotten:
            return
        thief = self.agent()
        thief.token, thief.numbers = known.agent.token, known.agent.numbers
        uid = UID + 1 if other == "user" else UID
        thief.peer = Peer(uid, uid, known.agent.peer.pid + 1)
        if known.is_open and other == "process" and known.agent.process is None:
            known.heard = self.clock.now  # a sign of life, by the right user
        reply = self.ask(thief, "open", name="x")
        assert reply is not None
        is_ended = known.reason is not None and other == "process"
        assert reply["error"] == ("session_ended" if is_ended else "permission_denied")

    @precondition(lambda self: self.tokens)
    @rule(pick=picks, op=st.sampled_from(("heartbeat", "is_claimed", "try_acquire")))
    def ask_something(self, pick: int, op: str) -> None:
        known = self.tokens[pick % len(self.tokens)]
        fields: dict[str, Any] = {"principals": ["p1"]} if op == "is_claimed" else {}
        reply = self.ask(known.agent, op, **fields)
        assert reply is not None
        if known.is_open:
            known.heard = self.clock.now
            assert "error" not in reply
        elif known.opened is None or known.forgotten:
            assert reply["error"] == "session_unknown"
        else:
            assert (reply["error"], reply["reason"]) == ("session_ended", known.reason)

    @precondition(lambda self: self.tokens)
    @rule(pick=picks)
    def close(self, pick: int) -> None:
        """Close one; a second time, and without a session, it does nothing."""
        known = self.tokens[pick % len(self.tokens)]
        reply = self.ask(known.agent, "close")
        assert reply is not None
        assert "error" not in reply
        if known.is_open:
            self.end(known, "closed")

    def is_alive(self, agent: AgentOf) -> bool:
        process = agent.process
        return process is not None and self.host.alive.get(process.pid) == process.start

    @precondition(lambda self: self.host.alive)
    @rule(pick=picks, is_seen=st.booleans())
    def process_exits(self, pick: int, is_seen: bool) -> None:
        """Let a process end, while the daemon runs or while it is away; its pid is used again."""
        pid = sorted(self.host.alive)[pick % len(self.host.alive)]
        of_it = [
            each for each in self.tokens if self.is_alive(each.agent) and each.agent.peer.pid == pid
        ]
        if not is_seen:
            self.host.start(pid)
        for each in of_it:
            if each.is_open:
                self.end(each, "process_exited")
        if not is_seen:
            self.kill()
            self.daemon_has_started()
        elif of_it:
            self.exits(of_it[0].agent)

    @rule(seconds=st.sampled_from((1.0, 12.0, 29.0, 31.0, 700.0)))
    def time_passes(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.wake(end):
            self.sweep()
        self.clock.now = end
        for each in self.tokens:
            assert not (each.is_open and self.is_silent(each, end - 0.01)), "it should have ended"

    def is_silent(self, known: Known, now: float) -> bool:
        return known.agent.process is None and known.heard + TTL < now

    def sweep(self) -> None:
        for each in self.tokens:
            if each.is_open and self.is_silent(each, self.clock.now):
                self.end(each, "no_heartbeat")
        self.forget_long_ended()

    @rule()
    def daemon_is_killed(self) -> None:
        self.kill()
        self.daemon_has_started()

    def daemon_has_started(self) -> None:
        """Give all that are open their whole time: what they sent meanwhile was not read."""
        for each in self.tokens:
            each.heard = self.clock.now
        self.sweep()

    @invariant()
    def those_are_known_that_are_open_or_have_ended(self) -> None:
        opened = {each.opened for each in self.tokens if each.is_open}
        assert {session.id for session in self.desk.state.sessions} == opened
        ended = {each.agent.token for each in self.tokens if each.reason and not each.forgotten}
        assert self.desk.state.sessions.ended.keys() == ended


def test_sessions_open_and_end_as_a_dictionary_says() -> None:
    run_machine(Sessions, examples=30, steps=40)


@pytest.mark.slow
def test_sessions_open_and_end_for_longer_as_a_dictionary_says() -> None:
    run_machine(Sessions, examples=100, steps=50)
