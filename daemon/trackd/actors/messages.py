"""The messages between the actors: plain immutable values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pykka

from trackd.actors.subscribers import Subscribers
from trackd.config.settings import Config
from trackd.host.roles import Roles
from trackd.sessions.identity import Process


@dataclass(frozen=True, slots=True)
class Recover:
    """To the tracker: open the store and take over what it holds. Ask; errors are raised there."""


@dataclass(frozen=True, slots=True)
class Serve:
    """To the tracker: end the sessions of processes that are gone, then serve the endpoint. Ask.

    A leader has neither watcher nor publisher: the relays watch processes and publish events.
    """

    endpoint: str
    ticker: pykka.ActorRef[Any]
    watcher: pykka.ActorRef[Any] | None
    publisher: pykka.ActorRef[Any] | None
    events: str
    descriptor: int | None = None


@dataclass(frozen=True, slots=True)
class RestoreFiles:
    """To the tracker: the state files were removed or replaced; create them again. Ask."""


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """What a reload did. To the tracker by itself: it did nothing.

    Attributes:
        changed: the settings that changed.
        refused: the settings that need a restart, each with the reason.
        error: why nothing could change, or None.
    """

    changed: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Reload:
    """To the tracker: from now on these settings, which differ in live ones only. Ask.

    Attributes:
        config: the settings.
        roles: who is admin from now on.
        outcome: what the reload has changed and refused, as `status` returns it.
    """

    config: Config
    roles: Roles
    outcome: ReloadOutcome


@dataclass(frozen=True, slots=True)
class Sweep:
    """To the tracker: do everything that is due by now."""


@dataclass(frozen=True, slots=True)
class WakeAt:
    """To the ticker: the next sweep is due strictly after this time, or never (None)."""

    time: float | None


@dataclass(frozen=True, slots=True)
class WatchProcess:
    """To the watcher: send a `ProcessExited` when this process exits; at once when it has.

    Attributes:
        process: the process.
        again: whether an earlier try failed.
    """

    process: Process
    again: bool = False


@dataclass(frozen=True, slots=True)
class UnwatchProcess:
    """To the watcher: the exit of this process does not matter any more."""

    process: Process


@dataclass(frozen=True, slots=True)
class ProcessExited:
    """To the tracker, from the watcher's inbox through the watcher.

    Attributes:
        process: the process.
        at: when the kernel reported it, in seconds of CLOCK_BOOTTIME.
    """

    process: Process
    at: float


class Audience:
    """The publisher's audience, for the tracker.

    Attributes:
        listening: whether there is a subscriber. A plain attribute: a batch that ends while it
            changes may be published or not, and the greeting that follows makes up for it.
        subscribers: who subscribes, and how many subscriptions a user may have.
    """

    __slots__ = ("listening", "subscribers")

    def __init__(self) -> None:
        self.listening = False
        self.subscribers = Subscribers()


@dataclass(frozen=True, slots=True)
class Bind:
    """To the publisher or the tracker: serve this endpoint. Ask; errors are raised there.

    Attributes:
        endpoint: where.
        descriptor: a socket that listens there.
    """

    endpoint: str
    descriptor: int


@dataclass(frozen=True, slots=True)
class Publish:
    """To the publisher: these events are stored.

    Attributes:
        epoch: the epoch that `hello` returns.
        tracker_id: the tracker id that `hello` returns.
        revision: the revision of the last event.
        events: the packed events, in order.
    """

    epoch: int
    tracker_id: str
    revision: int
    events: Sequence[bytes]


class Ping:
    """To any actor: answer, to show that it serves. Ask."""
