"""The server: what starts in which order, what ends it, and how it stops, with fake actors."""

from __future__ import annotations

import gc
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pykka
import pytest
import zmq

from helpers.support import run_script
from trackd import server
from trackd.config import exits
from trackd.config.exits import UnusableError
from trackd.config.settings import Config
from trackd.host.places import take_places
from trackd.signals import ActorEnded, SignalCame
from trackd.storage.store import StoreError
from trackd_client.wire.places import check_ipc_path

ACTORS = ("TrackerActor", "ExpiryTicker", "ProcessWatcher", "EventPublisher")
END = SignalCame(signal.SIGTERM)
#: The descriptor that systemd would pass.
SYSTEMD = 10_000


class Ended(BaseException):
    """Raised where the process would end at once."""


class World:
    """A server whose actors only keep a record.

    Attributes:
        record: what happened, in order.
        faults: raised when that is about to happen.
        wedged: actors that do not stop, however long one waits.
        now: the time.
        probed: whether a request through the daemon comes back.
        end: what ends the wait.
    """

    def __init__(self, directory: Path) -> None:
        self.config = Config(
            cluster_name="example.com", endpoint=f"ipc://{directory}/trackd.sock", state_dir=""
        )
        self.socket = check_ipc_path(self.config.endpoint)
        self.events: queue.SimpleQueue[SignalCame | ActorEnded] = queue.SimpleQueue()
        self.record: list[str] = []
        self.faults: dict[str, Exception] = {}
        self.wedged: set[str] = set()
        self.now = 0.0
        self.wanted = False
        self.probed = True
        self.end: SignalCame | ActorEnded = END

    def happen(self, what: str) -> None:
        self.record.append(what)
        if what in self.faults:
            raise self.faults[what]

    def monotonic(self) -> float:
        self.now += 0.3  # ten looks at the clock are less than STOP_SECONDS
        return self.now

    def end_now(self, code: int) -> None:
        self.record.append(f"exit {code} at once")
        raise Ended

    def serve(self, descriptor: int | None = None) -> int:
        overseer: Any = Overseer(self)
        with take_places(self.config, listening=descriptor is not None) as places:
            return server._serve(self.config, places, descriptor, overseer)


class Overseer:
    """Stands for the overseer; its notifier says nothing but that it was asked."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events = world.events
        self.notifier = self
        self.wanted = world.wanted

    def ended(self, name: str, thread: threading.Thread) -> None:
        self.events.put(ActorEnded(name, thread))

    def ask_reload(self) -> None:
        raise AssertionError("nobody asks for a reload")

    def ready(self) -> None:
        self.world.happen("ready")

    def stopping(self) -> None:
        self.world.happen("stopping")

    def prove(self, probe: object, seconds: float) -> bool:
        self.world.happen("prove")
        return self.world.probed

    def wait(self, tracker: object, probe: object, look: object) -> SignalCame | ActorEnded:
        self.world.happen("wait")
        return self.world.end


def fake_actor(world: World, name: str) -> type:
    """Return what stands for the class of an actor, and for a reference to it."""

    class Reference:
        actor_inbox = None

        def __init__(self, on_end: Callable[[str, threading.Thread], None]) -> None:
            self.actor_class = actor
            self._on_end = on_end

        def ask(self, message: object, timeout: float) -> None:
            kind = type(message).__name__
            world.happen(f"{kind} to {name}")
            descriptor = getattr(message, "descriptor", None)
            if descriptor is not None and descriptor != SYSTEMD:
                os.close(descriptor)

        def stop(self, *, block: bool) -> None:
            world.happen(f"stop {name}")
            if isinstance(world.end, ActorEnded) and world.end.name == name:
                raise pykka.ActorDeadError(name)  # its end was said already, once
            if name in world.wedged:
                world.now += server.STOP_SECONDS
                return
            thread = threading.Thread(target=lambda: None)
            thread.start()
            self._on_end(name, thread)

    class Actor:
        @classmethod
        def start(cls, on_end: Any, *args: object, **options: object) -> Reference:
            world.happen(f"start {name}")
            return Reference(on_end)

    Actor.__name__ = name
    actor = Actor
    return Actor


class FakeProbe:
    def __init__(self, context: object, endpoint: str) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    world = World(tmp_path)
    for name in ACTORS:
        monkeypatch.setattr(server, name, fake_actor(world, name))
    monkeypatch.setattr(server, "Probe", FakeProbe)
    monkeypatch.setattr(server, "time", SimpleNamespace(monotonic=world.monotonic))
    monkeypatch.setattr("os._exit", world.end_now)
    context = SimpleNamespace(destroy=lambda: world.happen("end the context"))
    monkeypatch.setattr(zmq, "Context", lambda: context)
    thresholds = gc.get_threshold()
    yield world
    gc.unfreeze()
    gc.set_threshold(*thresholds)


STOPS = [*[f"stop {name}" for name in reversed(ACTORS)], "end the context"]


def test_the_state_is_recovered_first_and_the_socket_of_agents_is_served_last(
    world: World,
) -> None:
    assert world.serve() == exits.OK
    assert world.record == [
        "start TrackerActor",
        "Recover to TrackerActor",
        "start ExpiryTicker",
        "start ProcessWatcher",
        "start EventPublisher",
        *[f"Ping to {name}" for name in ACTORS],
        "Bind to EventPublisher",
        "Serve to TrackerActor",
        "ready",
        "wait",
        "stopping",
        *STOPS,
    ]


def test_a_stop_leaves_no_sockets(world: World, tmp_path: Path) -> None:
    world.serve()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_systemd_listens_on_is_left_alone(world: World, tmp_path: Path) -> None:
    world.socket.touch(mode=0o640)
    mode = world.socket.stat().st_mode
    assert world.serve(descriptor=SYSTEMD) == exits.OK
    assert list(tmp_path.iterdir()) == [world.socket]
    assert world.socket.stat().st_mode == mode


def test_systemd_hears_that_the_daemon_is_ready_only_after_a_request_came_back(
    world: World,
) -> None:
    world.wanted = True
    assert world.serve() == exits.OK
    assert world.record.index("prove") == world.record.index("ready") - 1


def test_a_daemon_whose_requests_do_not_come_back_ends(world: World) -> None:
    world.wanted, world.probed = True, False
    assert world.serve() == exits.FAILED
    assert "ready" not in world.record
    assert world.record[-5:] == STOPS


def test_the_end_of_an_actor_ends_the_others_and_the_daemon_has_failed(world: World) -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    world.end = ActorEnded("ProcessWatcher", thread)
    assert world.serve() == exits.FAILED
    assert world.record[-6:] == ["stopping", *STOPS]


@pytest.mark.parametrize(
    ("when", "fault", "sentence"),
    [
        ("Recover to TrackerActor", StoreError("no space"), "cannot keep state in .*: no space"),
        ("Serve to TrackerActor", OSError("no such place"), "cannot serve ipc://.*no such place"),
        ("Bind to EventPublisher", OSError("no such place"), "cannot serve ipc://.*no such place"),
    ],
)
def test_a_start_that_the_host_refuses_says_why_and_stops_what_has_started(
    world: World, tmp_path: Path, when: str, fault: Exception, sentence: str
) -> None:
    world.faults[when] = fault
    with pytest.raises(UnusableError, match=sentence):
        world.serve()
    started = [each.removeprefix("start ") for each in world.record if each.startswith("start ")]
    assert world.record[world.record.index(when) + 1 :] == [
        *[f"stop {name}" for name in reversed(started)],
        "end the context",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [pykka.Timeout("30 s"), pykka.ActorDeadError("stopped")])
@pytest.mark.parametrize("when", [f"Ping to {name}" for name in ACTORS])
def test_an_actor_that_does_not_start_is_a_failure(
    world: World, when: str, fault: Exception
) -> None:
    world.faults[when] = fault
    assert world.serve() == exits.FAILED
    assert "Serve to TrackerActor" not in world.record
    assert world.record[-5:] == STOPS


@pytest.mark.parametrize("wedged", ACTORS)
def test_an_actor_that_does_not_stop_ends_the_process_at_once(world: World, wedged: str) -> None:
    world.wedged = {wedged}
    with pytest.raises(Ended):
        world.serve()
    assert world.record[-2:] == [f"stop {wedged}", f"exit {exits.FAILED} at once"]


@pytest.mark.parametrize("name", ACTORS)
def test_an_actor_that_cannot_be_constructed_ends_the_daemon_with_a_code(
    world: World, name: str
) -> None:
    world.faults[f"start {name}"] = RuntimeError("a fault of ours")
    assert world.serve() == exits.FAILED
    assert world.record[-1] == "end the context"


HALF_MADE = """
import os, queue, sys, threading
from trackd import server
from trackd.actors import writer
from trackd.config.settings import load
from trackd.overseer import Overseer
from trackd.host.systemd import Notifier

def fail(*_):
    raise RuntimeError("a fault of ours")

writer.Roles = fail
config = load({"cluster_name": "c", "endpoint": sys.argv[1], "state_dir": ""}, {}, None)
sys.exit(server.run(config, fail))
"""


def test_a_writer_that_fails_with_its_sockets_open_does_not_hang_the_end(tmp_path: Path) -> None:
    done = run_script(HALF_MADE, f"ipc://{tmp_path}/s")
    assert done.returncode == exits.FAILED, done.stderr
