"""What the relay of a host and the leader say to each other. Pure.

Each message is one frame, a msgpack array. The relay sends requests of its agents, with the agent's
own frame untouched, and words of its own, whose number is 0:

    [number, [uid, gid, pid, start, command, admin, remaining], frame]
    [0, "here", boot, term, events, sent, ended, tracker_id, revision]
    [0, "exited", [[pid, start], ...]]

The number of a request is the relay's own. The reply carries it, so that the relay knows whose it
is. `here` comes each second and shows that the host lives: in which boot, with which term's
leader the relay has agreed, whether somebody there listens to events, when it was sent, whether the
relay has ended all sessions of the host, and of which state up to which revision those who listen
were told. `exited` names processes that have ended. The leader replies with

    [term, number, frame]
    [term, 0, "leads", {...}, sent]
    [term, 0, "heard", clock, revision, sent]
    [term, 0, "events", epoch, tracker_id, revision, [event, ...]]
    [term, 0, "moved", [name, ...]]

`leads` answers a `here` that names another term or ends the sessions: all that the relay has to
know of the leader, and the processes of its host that have sessions. `heard` answers any other
`here`. `sent` is that of the `here`; 0: it answers none. So the relay knows until when, at least,
the leader has heard of it, and that the leader has ended the sessions of its host, too. `events`
come when something happens; and when a host begins to listen, by a connection, those that it has
missed. `moved` comes to every host: of these proxies, or of all when it names none, something else
may be known than the mentions of this host said, so that it leaves none of them out. A newer sender
may append to each array; what follows is ignored.

Whatever the bytes of a relay say, they say it for one host: the leader knows from the key of the
connection which. It believes `admin` only of hosts that are listed for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import msgpack

from trackd_client.wire.checks import MAX_UINT64, is_control, is_seconds
from trackd_client.wire.protocol import FRAME_SLACK

#: Of a command line for people to read.
MAX_COMMAND: Final = 80
#: Uids and gids; the last number means none (chown(2)).
_MAX_ID: Final = 2**32 - 2
_MAX_PID: Final = 2**31 - 1
#: Seconds until a deadline, or since; a year is as good as any more.
_MAX_REMAINING: Final = 366 * 86400.0
#: Bytes beside the agent's frame: numbers, and a command of 4 bytes a character.
BESIDE: Final = 4096
_MAX_ARRAY: Final = 64
#: Processes in one `exited`.
MOST_EXITED: Final = 32
#: Characters of a boot id, and of a tracker id.
_MAX_ID_TEXT: Final = 64
# What msgpack raises for bytes that are none of its own. `unpackb` has no common base class.
_DECODE_ERRORS = (ValueError, TypeError, OverflowError, msgpack.UnpackException)


class HopError(ValueError):
    """A frame is not what the other end sends; the message says what is wrong."""


class Asker(NamedTuple):
    """The process that asks, as the kernel of its host knows it.

    Attributes:
        uid: its user there.
        gid: its group there.
        pid: its process id there; 0 when the relay cannot see it.
        start: its start in clock ticks since the boot of its host; None when it is not known.
        command: its command, for people to read; may be empty.
        admin: whether the relay counts it as an administrator of its host.
        remaining: seconds until the deadline of its request when the relay sent it, less than 0
            after it; None when there is none.
    """

    uid: int
    gid: int
    pid: int
    start: int | None
    command: str
    admin: bool
    remaining: float | None


class Hop(NamedTuple):
    """A request on its way.

    Attributes:
        number: the relay's, from 1; of one connection none is there twice.
        asker: who asks.
        frame: what the agent has sent.
    """

    number: int
    asker: Asker
    frame: bytes


class Here(NamedTuple):
    """The relay's sign of life.

    Attributes:
        boot: the boot id of its host.
        term: the term with whose leader it has agreed; 0: with none yet.
        events: whether somebody listens to events on its host.
        sent: when it was sent, in seconds of CLOCK_BOOTTIME of the host.
        ended: whether the relay has ended all sessions of its host, and the leader has to.
        tracker_id: of the state whose events they were told; empty for none.
        revision: of the last event that they were told.
    """

    boot: str
    term: int
    events: bool
    sent: float = 0.0
    ended: bool = False
    tracker_id: str = ""
    revision: int = 0


class Exited(NamedTuple):
    """Processes of the relay's host that have ended, each as pid and start."""

    processes: Sequence[tuple[int, int]]


class Answer(NamedTuple):
    """The reply to a request.

    Attributes:
        term: of the leader.
        number: of the request.
        frame: for the agent; empty: there will be no reply.
    """

    term: int
    number: int
    frame: bytes


class Leads(NamedTuple):
    """The leader's word to a relay that does not know it yet.

    Attributes:
        term: of the leader.
        about: what `hello` answers, and more that only relays have to know.
        sent: of the `here` that it answers; 0.0: it answers none.
    """

    term: int
    about: dict[str, Any]
    sent: float = 0.0


class Heard(NamedTuple):
    """The leader's sign of life.

    Attributes:
        term: of the leader.
        clock: fleet time in seconds.
        revision: of the state.
        sent: of the `here` that it answers.
    """

    term: int
    clock: float
    revision: int
    sent: float = 0.0


class Events(NamedTuple):
    """Events that are stored.

    Attributes:
        term: of the leader.
        epoch: the leader's.
        tracker_id: of the state.
        revision: of the last event.
        events: packed, in order; none: what has happened up to the revision is not sent.
    """

    term: int
    epoch: int
    tracker_id: str
    revision: int
    events: list[bytes]


class Moved(NamedTuple):
    """Proxies of which something else is known than their mentions said.

    Attributes:
        term: of the leader.
        names: of these proxies; none: any may be among them.
    """

    term: int
    names: Sequence[str]


#: What the leader says.
Said: TypeAlias = Answer | Leads | Heard | Events | Moved


def encode(hop: Hop) -> bytes:
    """Return the frame of a request for the leader.

    What is too long of the command is left out, and so is more than a year of what remains.
    """
    command = "".join("?" if is_control(each) else each for each in hop.asker.command)
    remaining = hop.asker.remaining
    if remaining is not None:
        remaining = min(max(remaining, -_MAX_REMAINING), _MAX_REMAINING)
    asker = hop.asker._replace(command=command[:MAX_COMMAND], remaining=remaining)
    packed: bytes = msgpack.packb((hop.number, asker, hop.frame))
    return packed


def encode_word(word: Here | Exited) -> bytes:
    """Return the frame of a word of the relay itself; of `Exited`, with MOST_EXITED at most."""
    packed: bytes = msgpack.packb((0, type(word).__name__.lower(), *word))
    return packed


def decode(data: bytes, max_frame: int) -> Hop | Here | Exited:
    """Return the request, or the word, in a relay's frame.

    Args:
        data: the frame.
        max_frame: bytes of the largest message that is served. A larger one gets through by as much
            as it would on the agent's own host, so that it is answered.

    Raises:
        HopError: it is not what a relay sends.
    """
    most = max_frame + FRAME_SLACK
    if len(data) > most + BESIDE:
        raise HopError(f"it has {len(data)} bytes")
    try:
        message = msgpack.unpackb(
            data,
            max_array_len=_MAX_ARRAY,
            max_map_len=0,
            max_ext_len=0,
            max_bin_len=most,
            max_str_len=BESIDE,
        )
    except _DECODE_ERRORS as error:
        raise HopError(f"not a msgpack message: {error}") from None
    if type(message) is not list or len(message) < 3:
        raise HopError("it is no array of number, who asks and frame")
    number, asker, frame = message[:3]
    if type(number) is int and number == 0:
        return _decode_word(message[1:])
    if not _is_count(number, 1, MAX_UINT64):
        raise HopError(f"its number has to be from 1 to {MAX_UINT64}")
    if type(frame) is not bytes:
        raise HopError("the agent's frame has to be bytes")
    return Hop(number, _decode_asker(asker), frame)


def _decode_asker(value: Any) -> Asker:
    if type(value) is not list or len(value) < len(Asker._fields):
        raise HopError(f"who asks has to be an array of {', '.join(Asker._fields)}")
    asker = Asker(*value[: len(Asker._fields)])
    valid = {
        "uid": _is_count(asker.uid, 0, _MAX_ID),
        "gid": _is_count(asker.gid, 0, _MAX_ID),
        "pid": _is_count(asker.pid, 0, _MAX_PID),
        "start": asker.start is None or _is_count(asker.start, 0, MAX_UINT64),
        "command": type(asker.command) is str
        and len(asker.command) <= MAX_COMMAND
        and not any(map(is_control, asker.command)),
        "admin": type(asker.admin) is bool,
        "remaining": asker.remaining is None
        or (is_seconds(asker.remaining) and abs(asker.remaining) <= _MAX_REMAINING),
    }
    for field, is_valid in valid.items():
        if not is_valid:
            raise HopError(f"{field} is not allowed: {value[Asker._fields.index(field)]!r:.100}")
    return asker


def _decode_word(message: list[Any]) -> Here | Exited:
    match message:
        case ["here", str(), int(), bool(), *_]:
            # What an older relay does not say has its default.
            here = Here(*message[1 : 1 + len(Here._fields)])
            if _is_here(here):
                return here
        case ["exited", list(pairs), *_] if all(map(_is_process, pairs)):
            return Exited([(pid, start) for pid, start in pairs])
    raise HopError(f"it is no word of a relay: {message!r:.100}")


def _is_here(here: Any) -> bool:
    return (
        len(here.boot) <= _MAX_ID_TEXT
        and _is_count(here.term, 0, MAX_UINT64)
        and is_seconds(here.sent)
        and type(here.ended) is bool
        and type(here.tracker_id) is str
        and len(here.tracker_id) <= _MAX_ID_TEXT
        and _is_count(here.revision, 0, MAX_UINT64)
    )


def _is_process(pair: object) -> bool:
    return (
        type(pair) is list
        and len(pair) == 2
        and _is_count(pair[0], 0, _MAX_PID)
        and _is_count(pair[1], 0, MAX_UINT64)
    )


def encode_answer(message: Said) -> bytes:
    """Return the frame of what the leader says."""
    if isinstance(message, Answer):
        packed: bytes = msgpack.packb(message)
    else:
        word = type(message).__name__.lower()
        packed = msgpack.packb((message.term, 0, word, *message[1:]))
    return packed


def decode_answer(data: bytes) -> Said | None:
    """Return what the leader says; None for a word that only a newer relay knows.

    Raises:
        HopError: it is not what a leader sends.
    """
    try:
        message = msgpack.unpackb(data)
    except _DECODE_ERRORS as error:
        raise HopError(f"not a msgpack message: {error}") from None
    match message:
        case [int(term), int(number), bytes(frame), *_] if number:
            return Answer(term, number, frame)
        case [int(term), 0, "leads", dict(about), *more] if _is_sent(more):
            return Leads(term, about, *more[:1])
        case [int(term), 0, "heard", float(clock), int(revision), *more] if _is_sent(more):
            return Heard(term, clock, revision, *more[:1])
        case [
            int(term),
            0,
            "events",
            int(epoch),
            str(tracker),
            int(revision),
            list(events),
            *_,
        ] if all(type(each) is bytes for each in events):
            return Events(term, epoch, tracker, revision, events)
        case [int(term), 0, "moved", list(names), *_] if all(type(each) is str for each in names):
            return Moved(term, names)
        case [int(), 0, str(), *_]:
            return None
    raise HopError("it is not what a leader sends")


def _is_sent(more: list[Any]) -> bool:
    """Return whether a moment follows, or nothing, as an older leader has it."""
    return not more or type(more[0]) is float


def _is_count(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most
