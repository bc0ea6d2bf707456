"""The stream of events, without any I/O: what to listen for, what to ask, which events to emit.

A `Stream` is a conversation in *steps*. Its generators yield what they need (an `Ask`, a
`Subscribe`, a `Listen`, a `Pause`) and are sent the result; an `Event`, `Rows` or a `History`
is for the caller. The synchronous and the asyncio client take the steps, each with its own I/O,
and add nothing.

Each change of the daemon's state raises its revision by one, and is one event. So a stream
that has emitted revision N must emit N + 1 next. It nearly always has it from the event socket,
which may lose messages; else from the daemon's history (`log`), which may be too short. When
neither has it, the stream emits a `gap` and begins again from a snapshot.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Any, Final, NamedTuple

from trackd_client.core.event import GAP, SNAPSHOT, Event, read_event
from trackd_client.core.mirror import KEYS, LISTINGS, Mirror, Row
from trackd_client.core.reading import read, reads
from trackd_client.errors import NoAnswer
from trackd_client.wire import requests
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import NOTICE, decode
from trackd_client.wire.requests import RequestFields

#: Seconds without a message after which the stream asks whether it has missed something.
QUIET_SECONDS: Final = 1.0
#: Seconds until a daemon that did not answer is asked again.
RETRY_SECONDS: Final = 1.0
#: Rows, or events, of one reply: as many as the daemon gives.
PAGE: Final = 1000
#: Walks that one snapshot may take. A walk fails when changes outrun it and no source has them, and
#: when so many others walk that the daemon forgets this one.
TRIES: Final = 20
#: Seconds of the pauses between them: random, up to the first figure, doubled each time, and at
#: most the second.
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0


class Ask(NamedTuple):
    """A step: a request without a session. The result is the fields of its reply.

    Attributes:
        op: the operation.
        fields: its own fields.
        refusable: whether the result is None when the daemon refuses the fields.
    """

    op: str
    fields: Mapping[str, Any]
    refusable: bool = False


def ask(request: RequestFields, *, refusable: bool = False) -> Ask:
    """Return the step that makes a request."""
    return Ask(request.op, request.encode(), refusable)


class Subscribe(NamedTuple):
    """A step: connect to the event socket. The result says whether there is one.

    Attributes:
        endpoint: as `hello` has it; empty for none.
    """

    endpoint: str


class Listen(NamedTuple):
    """A step: wait for the next frame of the event socket. The result is None when none came."""

    seconds: float


class Pause(NamedTuple):
    """A step: wait, without reading the event socket."""

    seconds: float


class Rows(NamedTuple):
    """Rows of a listing, for the caller."""

    rows: list[Row]


class History(NamedTuple):
    """All pages of a reply to `log`, for the caller."""

    fields: dict[str, Any]


Step = Event | Rows | History | Ask | Subscribe | Listen | Pause
Steps = Generator[Step, Any, None]


class Published(NamedTuple):
    """A message of the event socket."""

    tracker_id: str
    revision: int
    events: list[Event]


class Hello(NamedTuple):
    """Whose state the daemon serves, and its revision."""

    tracker_id: str
    revision: int
    clock: float


def read_published(frame: bytes) -> Published | None:
    """Return the message in a frame of the event socket, or None when it is not one of ours."""
    try:
        decoded = decode(frame)
        if decoded is None or decoded[0] != NOTICE:
            return None
        body = decoded[1]
        tracker_id, revision, events = (
            body.get(name) for name in ("tracker_id", "revision", "events")
        )
        if type(tracker_id) is str and type(revision) is int and type(events) is list:
            return Published(tracker_id, revision, [read_event(event) for event in events])
    except ProtocolError:
        pass
    return None


def read_page(reply: Mapping[str, Any]) -> list[Event]:
    """Return the events of a reply to `log`.

    Raises:
        NoAnswer: this version cannot read them.
    """
    return read("a history", lambda: [read_event(event) for event in reply["events"]])


@reads
def read_log(after: int, *, older: bool = False) -> Steps:
    """Ask for the history after a revision, page by page, and yield it as one reply.

    When the daemon loses its state meanwhile, it is the history of the new state.

    Args:
        after: a revision.
        older: whether to begin with older events, between which there are gaps.
    """
    events: list[Event] = []
    until: int | None = None
    first, state = after, None
    while True:
        reply = yield ask(requests.Log(after, PAGE, older))
        if state is not None and reply.get("tracker_id") != state:
            events, until, state, after = [], None, None, first
            continue
        state = reply.get("tracker_id")
        page = read_page(reply)
        events += page
        if until is None:
            until = reply["newest"]  # changes may come faster than they can be read
        if not page or until is None or page[-1].revision >= until:
            yield History({**reply, "events": events})
            return
        after = page[-1].revision


@reads
def read_rows(of: str) -> Steps:
    """Ask for a listing, and yield each row once, also when it has to begin again.

    When the daemon loses its state meanwhile, the rows of the new state follow.

    Raises:
        NoAnswer: it had to begin again too often.
    """
    seen: set[Any] = set()
    state = None
    for attempt in range(TRIES):
        cursor = None
        while True:
            page = yield ask_page(of, cursor)
            if page is None:
                break
            if page.get("tracker_id") != state:
                state = page.get("tracker_id")
                seen.clear()
            fresh = [row for row in page["rows"] if row[KEYS[of]] not in seen]
            seen.update(row[KEYS[of]] for row in fresh)
            yield Rows(fresh)
            cursor = page["cursor"]
            if cursor is None:
                return
        yield _pause_after(attempt)
    raise NoAnswer("the daemon forgot the listing again and again: too many are read just now")


def ask_page(of: str, cursor: list[int] | None, limit: int = PAGE) -> Ask:
    """Return the request for a page of a listing.

    A listing that was begun can be forgotten, when the daemon starts again or too many others
    are read at the same time.
    """
    return ask(requests.Snapshot(of, cursor, limit), refusable=cursor is not None)


class Stream:
    """The events of one daemon from now on, each once and in order."""

    def __init__(
        self,
        *,
        snapshot: bool = True,
        page: int = PAGE,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Set up a stream; `run` begins it.

        Args:
            snapshot: whether to emit a snapshot first, and again after each gap.
            page: rows, or events, to ask for at a time.
            wall: returns Unix time, for events that the daemon does not send.
        """
        self._page = page
        self._with_snapshot = snapshot
        self._wall = wall
        self._listens = False
        self._tracker_id = ""
        self._revision = 0  # everything up to it has been emitted

    @reads
    def run(self) -> Steps:
        """Emit all events, forever."""
        yield from self._subscribe()
        yield from self._begin((yield from self._hello()))
        while True:
            frame = yield Listen(QUIET_SECONDS)
            message = None if frame is None else read_published(frame)
            if message is None or not (yield from self._emit_published(message)):
                yield from self._catch_up(quiet=frame is None)

    @reads
    def once(self) -> Steps:
        """Emit one snapshot.

        Raises:
            NoAnswer: there were too many changes meanwhile, and no source had them.
        """
        for attempt in range(TRIES):
            if attempt == 1:  # nearly always, the history has what changed meanwhile
                yield from self._subscribe()
            snapshot = yield from self._snapshot()
            if snapshot is not None:
                yield snapshot
                return
            yield _pause_after(attempt)
        raise NoAnswer(
            "the daemon's state cannot be read as a whole: it changes faster, and the daemon's"
            " history, which would have the changes, is off or too short (the setting `history`);"
            " or too many clients read it at the same time"
        )

    def _subscribe(self) -> Steps:
        reply = yield ask(requests.Hello())
        self._listens = yield Subscribe(str(reply.get("events", "")))
        if self._listens:
            # A greeting comes, and from then on all that is published. Nothing depends on it: the
            # revisions show what is lost.
            yield Listen(QUIET_SECONDS)

    def _begin(self, who: Hello) -> Steps:
        """Begin at the present state, with a snapshot if one is wanted."""
        if self._with_snapshot:
            for attempt in itertools.count():
                snapshot = yield from self._snapshot()
                if snapshot is not None:
                    yield snapshot
                    return
                yield _pause_after(attempt)
        else:
            self._tracker_id, self._revision, _ = who

    def _catch_up(self, *, quiet: bool) -> Steps:
        """Emit what was missed, or a gap when it is lost.

        Args:
            quiet: whether no message has come: what is missing may have been published just now,
                and then nobody has to be asked for it.
        """
        page: list[Event] | None = None
        while True:
            who = yield from self._hello()
            if who.tracker_id != self._tracker_id or who.revision < self._revision:
                break
            # The page came between two greetings of one state, and so is of that state.
            found = yield from self._emit(page or ())
            while quiet and self._revision < who.revision:
                before = self._revision
                yield from self._listen_once()
                quiet = self._revision > before
            if self._revision >= who.revision:
                return
            if page is not None and not found and not (yield from self._listen_once()):
                break
            page = yield from self._log()
        yield Event(
            who.revision,
            who.clock,
            self._wall(),
            GAP,
            {"after": self._revision, "newest": who.revision},
        )
        yield from self._begin(who)

    def _emit(self, events: Iterable[Event]) -> Generator[Step, Any, bool]:
        """Emit the new ones of some events up to the first gap; return whether there were any."""
        before = self._revision
        for event in events:
            if event.revision == self._revision + 1:
                self._revision = event.revision
                yield event
        return self._revision > before

    def _emit_published(self, message: Published) -> Generator[Step, Any, bool]:
        """Emit what is new in a message; return whether nothing up to its revision is missing."""
        if message.tracker_id != self._tracker_id:
            return False
        yield from self._emit(message.events)
        return message.revision <= self._revision

    def _listen_once(self) -> Generator[Step, Any, bool]:
        """Emit what was published just now, which a history that is off does not have.

        Returns:
            False when what is missing will not come this way either.
        """
        frame = (yield Listen(QUIET_SECONDS)) if self._listens else None
        message = None if frame is None else read_published(frame)
        if message is None:
            return False
        return (yield from self._emit_published(message)) or not message.events  # a greeting

    def _snapshot(self) -> Generator[Step, Any, Event | None]:
        """Return a snapshot that is exact at its revision, or None when it must be tried again."""
        self._tracker_id = (yield from self._hello()).tracker_id
        mirror = yield from self._walk()
        after = yield from self._hello()
        if mirror is None or after.tracker_id != self._tracker_id:
            return None
        return Event(self._revision, after.clock, self._wall(), SNAPSHOT, mirror.snapshot())

    def _walk(self) -> Generator[Step, Any, Mirror | None]:
        """Return what the daemon's listings hold, brought to one revision.

        The rows of each page are as of its own revision. So after each page the events up to that
        revision are applied to all rows. Rows that have an event already take no harm, since an
        event says what a thing became.
        """
        mirror = Mirror()
        for of in LISTINGS:
            cursor = None
            while True:
                page = yield ask_page(of, cursor, self._page)
                if page is None or not self._is_of_state(page):
                    return None
                if of == LISTINGS[0] and cursor is None:
                    self._revision = mirror.revision = page["base"]
                mirror.put(of, page["rows"])
                if not (yield from self._advance(mirror, page["revision"])):
                    return None
                cursor = page["cursor"]
                if cursor is None:
                    break
        return mirror

    def _advance(self, mirror: Mirror, revision: int) -> Generator[Step, Any, bool]:
        """Apply all events up to a revision at least; return whether a source had them."""
        while self._revision < revision:
            events = yield from self._log()
            if not (yield from _apply(self._emit(events), mirror)) and not (
                yield from _apply(self._listen_once(), mirror)
            ):
                return False
        return True

    def _hello(self) -> Generator[Step, Any, Hello]:
        reply = yield ask(requests.Hello())
        return Hello(reply["tracker_id"], reply["revision"], reply["clock"])

    def _log(self) -> Generator[Step, Any, list[Event]]:
        reply = yield ask(requests.Log(self._revision, self._page))
        return read_page(reply) if self._is_of_state(reply) else []

    def _is_of_state(self, reply: Mapping[str, Any]) -> bool:
        """Return whether a reply may be of the state that is followed; old daemons do not say."""
        return bool(reply.get("tracker_id", self._tracker_id) == self._tracker_id)


def _pause_after(attempt: int) -> Pause:
    """Return a random pause, so that clients that fail together do not retry together."""
    longest = min(_PAUSE * 2.0 ** min(attempt, 10), _LONGEST_PAUSE)
    return Pause(random.uniform(0.0, longest))  # noqa: S311 - nothing to keep secret


def _apply(steps: Generator[Step, Any, bool], mirror: Mirror) -> Generator[Step, Any, bool]:
    """Pass steps on, but apply the events among them to a mirror."""
    answer = None
    while True:
        try:
            step = steps.send(answer)
        except StopIteration as end:
            return bool(end.value)
        answer = None
        if isinstance(step, Event):
            mirror.apply(step)
        else:
            answer = yield step
