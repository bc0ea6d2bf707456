"""The overseer: what ends the daemon, what a reload does, what systemd hears."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pykka
import pytest

from trackd.actors.messages import Reload, ReloadOutcome
from trackd.config.exits import UnusableError
from trackd.config.settings import Config, ConfigError
from trackd.overseer import Overseer
from trackd.signals import ActorEnded, SignalCame

CONFIG = Config(cluster_name="example.com", endpoint="ipc:///nowhere", state_dir="")
COUNTS = {
    "claimed": 2,
    "claimed_desired": 2,
    "desired": 3,
    "inflight": 1,
    "sessions": 4,
    "waiting": 0,
    "store": "ok",
}
HANGUP = SignalCame(signal.SIGHUP)
END = SignalCame(signal.SIGTERM)


class Systemd:
    """Stands for the notifier, and keeps what it is asked to send."""

    def __init__(self, watchdog: float | None = None) -> None:
        self.wanted = True
        self.watchdog = watchdog
        self.sent: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *text: self.sent.append(" ".join([name, *text]))


class Tracker:
    """Stands for the writer's reference; `answer` is returned or raised when it is asked."""

    def __init__(self) -> None:
        self.asked: list[Reload] = []
        self.told: list[object] = []
        self.answer: Exception | None = None

    def ask(self, message: Reload, timeout: float) -> None:
        self.asked.append(message)
        if self.answer is not None:
            raise self.answer

    def tell(self, message: object) -> None:
        self.told.append(message)
        if self.answer is not None:
            raise self.answer


class Probe:
    """Comes back with the counts so many times, then not; without any left, the end comes."""

    def __init__(self, world: World, *trips: dict[str, Any] | None) -> None:
        self.world = world
        self.trips = list(trips)
        self.waits: list[float] = []

    def trip(self, seconds: float, give_up: Callable[[], bool]) -> dict[str, Any] | None:
        self.waits.append(seconds)
        counts = self.trips.pop(0)
        if not self.trips:
            self.world.events.put(END)
        return counts


class World:
    """An overseer, and all that it works with."""

    def __init__(self, *, closable: bool = True, watchdog: float | None = None) -> None:
        self.events: queue.SimpleQueue[SignalCame | ActorEnded] = queue.SimpleQueue()
        self.systemd = Systemd(watchdog)
        self.tracker = Tracker()
        self.looks = 0
        self.wanted: Config | Exception = CONFIG
        notifier: Any = self.systemd
        self.overseer = Overseer(CONFIG, self.reread, self.events, notifier, closable=closable)

    def reread(self) -> Config:
        if isinstance(self.wanted, Exception):
            raise self.wanted
        return self.wanted

    def wait(self, *events: SignalCame | ActorEnded, probe: Any = None) -> SignalCame | ActorEnded:
        for event in events:
            self.events.put(event)
        tracker: Any = self.tracker
        return self.overseer.wait(tracker, probe, self.look)

    def look(self) -> None:
        self.looks += 1

    def reload(self) -> None:
        tracker: Any = self.tracker
        self.overseer.reload(tracker)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether there is a terminal, as its only item says."""
    there = [True]
    module = sys.modules[Overseer.__module__]
    monkeypatch.setattr(module, "_has_terminal", lambda: there[0])
    return there


# -- what ends the daemon --------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_wait(number: int) -> None:
    world = World()
    assert world.wait(SignalCame(number)) == SignalCame(number)
    assert world.tracker.asked == []


def test_the_end_of_an_actor_ends_the_wait() -> None:
    world = World()
    world.overseer.ended("ExpiryTicker", threading.current_thread())
    assert world.wait() == ActorEnded("ExpiryTicker", threading.current_thread())


def test_a_hangup_reloads_and_the_wait_goes_on(terminal: list[bool]) -> None:
    world = World()
    assert world.wait(HANGUP, HANGUP, END) == END
    assert len(world.tracker.asked) == 2


def test_what_an_admin_asks_for_is_a_hangup_too(terminal: list[bool]) -> None:
    world = World()
    world.overseer.ask_reload()
    assert world.wait(END) == END
    assert len(world.tracker.asked) == 1


@pytest.mark.parametrize(
    ("closable", "had", "has", "ends"),
    [
        (True, True, False, True),
        (True, True, True, False),
        (True, False, False, False),
        (False, True, False, False),  # nohup
    ],
)
def test_a_hangup_ends_the_daemon_only_when_its_terminal_was_closed(
    terminal: list[bool], *, closable: bool, had: bool, has: bool, ends: bool
) -> None:
    terminal[0] = had
    world = World(closable=closable)
    terminal[0] = has
    assert world.wait(HANGUP, END) == (HANGUP if ends else END)
    assert len(world.tracker.asked) == (not ends)


# -- signs of life ---------------------------------------------------------------------------


def test_the_watchdog_is_fed_only_when_a_request_came_back() -> None:
    world = World(watchdog=0.03)
    probe = Probe(world, COUNTS, None, None, COUNTS, None)
    assert world.wait(probe=probe) == END
    assert world.systemd.sent.count("alive") == 2
    assert probe.waits == [pytest.approx(0.01)] * 5, "three within what the watchdog allows"


def test_the_files_are_looked_at_while_nothing_happens() -> None:
    world = World(watchdog=0.03)
    assert world.wait(probe=Probe(world, None, None, None)) == END
    assert world.looks >= 3


def test_a_file_that_cannot_be_replaced_ends_the_wait() -> None:
    world = World(watchdog=0.03)

    def look() -> None:
        raise UnusableError("its directory is gone")

    world.look = look  # type: ignore[method-assign] # what the guard does then
    with pytest.raises(UnusableError, match="its directory is gone"):
        world.wait()


def test_a_reload_is_followed_by_a_sign_of_life(terminal: list[bool]) -> None:
    world = World(watchdog=300.0)
    world.events.put(HANGUP)
    assert world.wait(probe=Probe(world, COUNTS)) == END
    assert world.systemd.sent[:2] == ["reloading", "ready"]
    assert world.systemd.sent[-1] == "alive"


@pytest.mark.parametrize(
    ("counts", "more"),
    [
        ({}, ""),
        ({"claimed": 5}, ", 3 claimed that are not desired"),
        ({"waiting": 7}, ", 7 waiting"),
        ({"store": "failing: disk full"}, ", store failing: disk full"),
    ],
)
def test_the_status_says_how_things_are_once(counts: dict[str, Any], more: str) -> None:
    world = World()
    probe: Any = Probe(world, *[COUNTS | counts] * 3)
    for _ in range(2):
        assert world.overseer.prove(probe, 1.0)
    assert world.systemd.sent == [f"status claimed 2 of 3 desired, 1 in flight, 4 sessions{more}"]


def test_a_request_that_does_not_come_back_proves_nothing() -> None:
    world = World()
    probe: Any = Probe(world, None)
    assert not world.overseer.prove(probe, 1.0)
    assert world.systemd.sent == []


# -- reloads ---------------------------------------------------------------------------------


def test_a_reload_gives_the_writer_what_can_change_and_says_what_cannot() -> None:
    world = World()
    world.wanted = replace(CONFIG, max_waiters=9, cluster_name="other.example")
    world.reload()
    (message,) = world.tracker.asked
    assert message.config == replace(CONFIG, max_waiters=9)
    assert message.outcome.changed == ("max_waiters",)
    assert [name for name, _ in message.outcome.refused] == ["cluster_name"]
    assert message.outcome.error is None
    assert world.systemd.sent == ["reloading", "ready"]
    probe: Any = Probe(world, COUNTS)
    world.overseer.prove(probe, 1.0)
    assert world.systemd.sent[-1].endswith("not reloaded: cluster_name")


def test_the_next_reload_is_compared_with_what_the_last_one_changed() -> None:
    world = World()
    world.wanted = replace(CONFIG, max_waiters=9)
    for _ in range(2):
        world.reload()
    assert [message.outcome.changed for message in world.tracker.asked] == [("max_waiters",), ()]


def test_an_admin_who_is_gone_is_logged_and_the_reload_done(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.wanted = replace(CONFIG, admin_users=("no such user",))
    world.reload()
    assert [message.outcome.changed for message in world.tracker.asked] == [("admin_users",)]
    assert "an admin is unknown" in caplog.messages


def test_the_log_names_every_mistake_of_a_configuration_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = World()
    world.wanted = ConfigError(["the first is wrong", "the second too"])
    world.reload()
    (record,) = caplog.records
    assert record.__dict__["fields"] == {"reason": "the first is wrong; the second too"}


def test_a_wrong_configuration_changes_nothing() -> None:
    world = World()
    world.wanted = ConfigError("line 3: no such setting")
    world.reload()
    assert world.tracker.asked == []
    (told,) = world.tracker.told
    assert isinstance(told, ReloadOutcome)
    assert told.error
    assert (told.changed, told.refused) == ((), ())
    assert world.systemd.sent == ["reloading", "ready"]
    probe: Any = Probe(world, COUNTS, COUNTS)
    world.overseer.prove(probe, 1.0)
    assert world.systemd.sent[-1].endswith("the last reload was refused, see the log")
    world.wanted = CONFIG
    world.reload()
    world.overseer.prove(probe, 1.0)
    assert world.systemd.sent[-1].endswith("4 sessions"), "a good one is all that counts then"


@pytest.mark.parametrize("fault", [pykka.Timeout("5 s"), pykka.ActorDeadError("stopped")])
def test_a_writer_that_does_not_answer_leaves_the_settings_and_systemd_is_not_kept_waiting(
    fault: Exception,
) -> None:
    world = World()
    world.wanted = replace(CONFIG, max_waiters=9)
    world.tracker.answer = fault
    world.reload()
    assert world.systemd.sent == ["reloading", "ready"]
    world.tracker.answer = None
    world.reload()
    assert world.tracker.asked[-1].outcome.changed == ("max_waiters",), "it was not done before"
