"""A stream of events against a daemon that restarts, forgets and loses messages at any step."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from helpers.fake_daemon import Watcher, World


class EventStream(RuleBasedStateMachine):
    """One watcher; whatever it tells is checked against what was so."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.watcher = Watcher(self.world, page=2)

    @initialize(history=st.sampled_from([0, 3, 10_000]), publishes=st.booleans())
    def begin(self, history: int, publishes: bool) -> None:
        self.world.history = history
        self.world.publishes = publishes

    def teardown(self) -> None:
        self.watcher.settle()
        assert self.watcher.mirror is not None
        assert self.watcher.mirror.revision == self.world.revision
        assert self.watcher.tracker_id == self.world.tracker_id

    @rule(seed=st.integers(0, 2**16), times=st.integers(1, 5))
    def change(self, seed: int, times: int) -> None:
        chance = random.Random(seed)
        for _ in range(times):
            self.world.happen(chance)

    @rule(times=st.integers(1, 20))
    def watch(self, times: int) -> None:
        for _ in range(times):
            self.watcher.step()

    @rule()
    def settle(self) -> None:
        self.watcher.settle()

    @precondition(lambda self: self.world.published)
    @rule(first=st.integers(0, 3), count=st.integers(1, 4))
    def lose_messages(self, first: int, count: int) -> None:
        kept = list(self.world.published)
        del kept[first : first + count]
        self.world.published.clear()
        self.world.published.extend(kept)

    @rule(frame=st.sampled_from([b"", b"\xc1", b"\x93\x01\x03\x80", b"\x93\x01\x02\x80"]))
    def hear_rubbish(self, frame: bytes) -> None:
        self.world.published.append(frame)

    @rule()
    def hear_another_subscriber(self) -> None:
        self.world.greet()

    @rule()
    def restart(self) -> None:
        self.world.restart()

    @rule()
    def lose_the_state(self) -> None:
        self.world.begin()


EventStream.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=40,
    deadline=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],  # a busy machine is no defect
)
TestEventStream = EventStream.TestCase
