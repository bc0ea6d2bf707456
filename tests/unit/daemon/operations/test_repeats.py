"""Gossip that repeats an earlier message: read by its bytes, and not looked at again."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.writer import AgentOf, Clock, Desk, Faults, observe
from trackd.actors.messages import Reload, ReloadOutcome
from trackd.operations import repeats as module
from trackd.operations.repeats import MOST, MOST_BYTES, Heard, Repeats, Seen
from trackd.rules.tracker import Tracker
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import REQUEST, decode, encode

ROWS = [[f"p{i}.example.com", "", 1, 60.0] for i in range(40)]
SEEN = Seen(object(), 1.0, [], [], [])


def message(rows: Any = ROWS, **fields: Any) -> bytes:
    """Return a message as the client sends it: its rows are in the midst."""
    return encode(REQUEST, {"op": "track_expected", "proxies": rows, "seq": 7, **fields})


def hear(repeats: Repeats, frame: bytes) -> Heard | None:
    """Read a message, which must be read as ever, and keep what can be kept."""
    decoded, heard = repeats.decode(frame)
    assert repr(decoded) == repr(decode(frame))
    if heard is not None:
        assert decoded is not None
        assert decoded[1]["proxies"] is heard.rows
        heard.keep(SEEN)
    return heard


# which messages are found again


def test_a_message_is_kept_when_it_is_heard_for_the_second_time() -> None:
    repeats = Repeats()
    assert hear(repeats, message(seq=1)) is None
    kept = hear(repeats, message(seq=2))
    assert kept is not None
    for seq in range(3, 6):
        again = hear(repeats, message(seq=seq, token=bytes(16)))
        assert again is kept
        assert again.seen is SEEN


def test_rows_are_found_wherever_they_are_in_a_message() -> None:
    repeats = Repeats()
    hear(repeats, message())
    kept = hear(repeats, message())
    last = {"op": "track_expected", "seq": 8, "proxies": ROWS}
    first = {"proxies": ROWS, "seq": 8, "op": "track_expected"}
    for body in (last, first):
        assert hear(repeats, msgpack.packb((1, 1, body))) is kept
        assert hear(repeats, msgpack.packb((1, 1, body, "newer"))) is kept


def test_rows_that_are_not_the_same_to_the_last_byte_are_read_again() -> None:
    repeats = Repeats()
    hear(repeats, message())
    kept = hear(repeats, message())
    other = [*ROWS[:-1], [*ROWS[-1][:3], 60]]
    assert other == ROWS, "1 is 1.0, but is not sent as that"
    assert hear(repeats, message(other)) is not kept
    assert hear(repeats, message(other)) is not None


def test_a_message_that_nobody_wants_to_keep_is_not_kept() -> None:
    repeats = Repeats()
    for _ in range(3):
        _, heard = repeats.decode(message())
    assert heard is not None
    assert heard.seen is None


def test_other_messages_hold_no_rows() -> None:
    repeats = Repeats()
    for _ in range(3):
        assert (
            hear(repeats, msgpack.packb((1, 1, {"op": "claim", "principals": ["p"] * 300}))) is None
        )
        assert hear(repeats, message("none")) is None


# what looks like rows


def test_bytes_that_are_something_else_are_not_taken_for_rows() -> None:
    repeats = Repeats()
    others = [["other", "", 1, None] for _ in range(20)]
    for rows in (ROWS, others):
        field = msgpack.packb("proxies") + msgpack.packb(rows)
        for body in (
            {"seq": 1, "token": field, "proxies": []},  # part of another value
            {"seq": 1, "token": field},
            {"seq": 1, "more": {"proxies": rows}},  # of another map
            {"seq": 1, "more": {"proxies": rows}, "proxies": rows[:1]},
            {"seq": 1, "proxies": [rows]},
            {"seq": 1, "proxies": {"proxies": rows}},
        ):
            for _ in range(3):
                hear(repeats, msgpack.packb((1, 1, body)))
            for _ in range(3):
                hear(repeats, message(rows))


def test_of_two_fields_of_that_name_the_last_one_counts() -> None:
    repeats = Repeats()
    for _ in range(2):
        hear(repeats, message())
    packed = [msgpack.packb("proxies") + msgpack.packb(rows) for rows in (ROWS, ROWS[:3])]
    for first, last in (packed, packed[::-1]):
        for _ in range(3):
            hear(repeats, b"\x93\x01\x01\x82" + first + last)


def test_whoever_knows_how_rows_are_read_cannot_let_others_be_read() -> None:
    """What stands for the rows meanwhile is another value in each process."""
    assert Repeats()._word != Repeats()._word


FIELD = msgpack.packb("proxies")
PACKED_ROWS = [msgpack.packb(rows) for rows in ([["a", "", 1, 2.0]] * 2, [["a", "", 1, None]] * 2)]
PAIRS = [
    *[FIELD + rows for rows in PACKED_ROWS],
    *[b"\xa3seq" + msgpack.packb(FIELD + rows) for rows in PACKED_ROWS],
    *[b"\xa3map\x81" + FIELD + rows for rows in PACKED_ROWS],
    *[FIELD + value for value in (b"\x01", b"\xc0", b"\x90", b"\x92", b"\xc4\x10", b"\xc4\x09")],
    *[b"\xa3seq" + value for value in (b"\x01", b"\xc1", b"\x92", b"\xc4\x08", b"\xda\x00\x10")],
    b"\xc4\x08" + FIELD + b"\x01",
    b"\x01\x01",
]
FRAMES = st.builds(
    lambda head, pairs, more, tail: (
        head + bytes([0x80 + len(pairs) + more]) + b"".join(pairs) + tail
    ),
    st.sampled_from([b"\x93\x01\x01"] * 5 + [b"\x94\x01\x01", b"\x93\x02\x01", b"\x93\x01\x09"]),
    st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3),
    st.sampled_from([0, 0, 0, 1]),
    st.sampled_from([b"", b"", b"", b"\x01", b"\xc0\xc0"]),
)


def outcome(call: Any, frame: bytes) -> str:
    try:
        return repr(call(frame))
    except ProtocolError as error:
        return f"{error.code} {error} {error.seq}"


@given(st.lists(st.tuples(FRAMES, st.integers(1, 3)), max_size=12))
def test_every_message_is_read_as_ever_whatever_came_before(
    frames: list[tuple[bytes, int]],
) -> None:
    repeats = Repeats()

    def read(frame: bytes) -> Any:
        decoded, heard = repeats.decode(frame)
        if heard is not None:
            assert decoded is not None
            assert decoded[1]["proxies"] is heard.rows
            heard.keep(SEEN)
        return decoded

    with patch.object(module, "_KEY_BYTES", 4):
        for frame, times in frames:
            for _ in range(times):
                assert outcome(read, frame) == outcome(decode, frame)
    kept = [heard for heard in repeats._known.values() if heard is not None]
    assert all(msgpack.unpackb(heard.packed) == heard.rows for heard in kept)


# what is kept


def of_agent(number: int, rows: int = 30) -> bytes:
    return message([[f"agent{number}-{i}", "", 1, None] for i in range(rows)])


def test_the_message_that_was_heard_longest_ago_is_forgotten_first() -> None:
    repeats, size = Repeats(), 5_000
    for number in range(MOST_BYTES // (300 * size) + 3):
        hear(repeats, of_agent(number, size))
        assert hear(repeats, of_agent(number, size)) is not None
        assert hear(repeats, of_agent(0, size)) is not None, "it repeats itself all the time"
        assert sum(each.size for each in repeats._known.values() if each) <= MOST_BYTES
    assert hear(repeats, of_agent(1, size)) is None


def test_of_messages_that_begin_alike_one_is_kept() -> None:
    repeats = Repeats()
    for last in (1, 2, 1, 2, 2):
        heard = hear(repeats, message([*ROWS, ["last", "", last, None]]))
    (kept,) = repeats._known.values()
    assert kept is heard
    assert kept is not None
    assert repeats._room == MOST_BYTES - kept.size


def test_only_so_many_messages_are_remembered_at_all() -> None:
    repeats = Repeats()
    for number in range(MOST + 50):
        hear(repeats, of_agent(number))
        if number % 2:
            hear(repeats, of_agent(number))
    assert len(repeats._known) <= MOST
    assert repeats._room == MOST_BYTES - sum(each.size for each in repeats._known.values() if each)


def test_a_message_too_large_to_keep_leaves_nothing_behind() -> None:
    repeats = Repeats()
    with patch.object(module, "_ROW_BYTES", MOST_BYTES):
        for _ in range(3):
            hear(repeats, message())
    assert repeats._room == MOST_BYTES


# what was seen in a message holds until something changes


class Looks:
    """Counts how often a tracker looks at the rows of a message."""

    def __init__(self, patcher: pytest.MonkeyPatch) -> None:
        self.count = 0
        unknown = Tracker.unknown

        def counted(tracker: Tracker, *given: Any) -> Any:
            self.count += 1
            return unknown(tracker, *given)

        patcher.setattr(Tracker, "unknown", counted)


def send(desk: Desk, agent: AgentOf, op: str, **fields: Any) -> dict[str, Any]:
    """Let the daemon receive a request as bytes; return its reply."""
    body = agent.body(op, **fields)
    body["done"] = [1, body["seq"] - 1] if body["seq"] > 1 else []
    call = desk.actor.mailbox._read_call(b"route", agent.peer, msgpack.packb((1, 1, body)), None)
    assert call is not None
    call.set(desk.actor.on_receive(call))
    (sent,) = [sent for sent in desk.end_batch() if sent.body["seq"] == body["seq"]]
    return sent.body


def test_rows_are_not_looked_at_again_until_something_has_changed(
    desk: Desk, agent: AgentOf, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)

    def say(rows: Any = ROWS) -> int:
        before = looks.count
        assert "error" not in send(desk, agent, "track_expected", proxies=rows)
        return looks.count - before

    assert [say() for _ in range(4)] == [1, 1, 0, 0]
    clock.now += 30.0
    assert say() == 0
    assert desk.state.tracker.mentions.of("p0.example.com").expiry == clock.now + 60.0
    send(desk, agent, "adopt", principals=["p0.example.com"])
    assert say() == 0, "who holds a proxy is not the business of gossip"
    assert say([["new", "", 1, None]]) == 1
    assert [say(), say()] == [1, 0]
    assert say([["p0.example.com", "", 2, None]]) == 1
    assert say() == 1
    tracked = desk.state.tracker.get("p0.example.com")
    assert tracked is not None
    assert tracked.generation == 1, "the newest message wins"
    assert [say(), say()] == [1, 0]
    clock.now += 60.1
    desk.sweep()
    assert not desk.state.tracker.is_tracked("p0.example.com")
    assert [say(), say(), say()] == [1, 1, 0]
    assert desk.state.tracker.is_tracked("p0.example.com")


def test_the_longest_ttl_counts_of_the_moment_in_which_a_message_is_repeated(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    metrics = desk.actor._runtime.metrics
    for max_ttl, lowered in ((86_400.0, 0), (20.0, 3 * len(ROWS)), (90.0, 0)):
        config = dataclasses.replace(desk.actor._config, max_ttl=max_ttl)
        desk.actor.on_receive(Reload(config, desk.actor._roles, ReloadOutcome()))
        before = metrics.limited_ttls
        for _ in range(3):
            send(desk, agent, "track_expected", proxies=ROWS)
            tracked = desk.state.tracker.get("p0.example.com")
            assert tracked is not None
            assert tracked.expiry == clock.now + min(60.0, max_ttl)
        assert metrics.limited_ttls == before + lowered


@pytest.mark.rule(15)
def test_a_word_on_termination_counts_again_after_another_one(
    desk: Desk, agent: AgentOf, clock: Clock
) -> None:
    first, second = ([[*row, {"terminating": word}] for row in ROWS] for word in (True, False))
    for rows in [first] * 3 + [second] * 3 + [first, second, second]:
        clock.now += 1.0
        send(desk, agent, "track_expected", proxies=rows)
        assert desk.state.tracker.is_marked("p0.example.com") == (rows is first)


@pytest.mark.rule(16)
def test_an_address_counts_again_after_another_one(desk: Desk, agent: AgentOf) -> None:
    addresses = ["h1:1", "h2:1", ""]
    messages = [[[*row, {"address": address}] for row in ROWS] for address in addresses]
    for place in (0, 0, 0, 1, 1, 1, 0, 1, 1, 2, 1, 2, 2, 2, 0, 2):
        send(desk, agent, "track_expected", proxies=messages[place])
        known = desk.state.tracker.targets.by_name.get("p0.example.com")
        assert ("" if known is None else known.text) == addresses[place]


# the same requests, as bytes and unpacked


MESSAGES: list[list[Any]] = [
    [["a", "", 1, 60.0], ["b", "", 1, 60.0], ["c", "g", 1, None]],
    [["a", "", 1, 60.0], ["b", "", 1, 60.0]],
    [["b", "", 1, 30], ["a", "", 1, 2e6]],
    [["a", "", 2, 60.0], ["b", "", 1, 60.0], ["c", "g", 1, None]],
    [["a", "", 1, 60.0, {"terminating": True}], ["b", "", 1, 60.0]],
    [["a", "", 1, 60.0, {"terminating": False}], ["b", "", 1, 60.0, {"address": "h:1"}]],
    [["b", "", 1, 60.0, {"address": "h:1"}], ["c", "g", 1, 9e9]],
    [["b", "", 1, 60.0, {"address": ""}]],
    [["a", "", 1, 60.0], ["a", "", 1, 5.0], ["b", "", 1, 0]],
    [["a", "", 1, 60.0], ["b", "", True, 60.0]],
    [["a", "", 1, 60.0], ["", "", 1, None]],
    [],
]
STEPS = st.one_of(
    st.tuples(st.just("say"), st.integers(0, len(MESSAGES) - 1), st.booleans()),
    st.tuples(st.just("say"), st.integers(0, len(MESSAGES) - 1), st.booleans()),
    st.tuples(st.just("pass"), st.sampled_from([0.3, 20.0, 61.0])),
    st.tuples(st.just("reload"), st.sampled_from([30.0, 86_400.0]), st.sampled_from([7.0, 180.0])),
    st.tuples(st.sampled_from(["forget", "adopt", "retire", "release", "fail", "restart"])),
)


class Host:
    """A daemon, with all that can be told of what gossip did to it."""

    def __init__(self, directory: str, clock: Clock, *, as_bytes: bool) -> None:
        self.directory, self.clock, self.as_bytes = Path(directory), clock, as_bytes
        self.agents = [AgentOf(1, None, os.geteuid()), AgentOf(2, None, 1000)]
        self.lease = 0
        self.start()

    def start(self) -> None:
        self.faults = Faults()
        self.desk = Desk(self.directory, self.clock, self.faults, history=1000)
        for agent in self.agents:
            self.ask(agent, "open")

    def ask(self, agent: AgentOf, op: str, **fields: Any) -> Any:
        body = agent.body(op, **fields)
        if self.as_bytes:
            frame = msgpack.packb((1, 1, body))
            call = self.desk.actor.mailbox._read_call(b"route", agent.peer, frame, None)
            assert call is not None
            call.set(self.desk.actor.on_receive(call))
        else:
            self.desk.send(body, agent.peer)
        return [change for moment in self.desk.actor._decide.batch for change in moment.changes], [
            sent.body for sent in self.desk.end_batch()
        ]

    def take(self, step: tuple[Any, ...]) -> Any:
        actor, admin = self.desk.actor, self.agents[0]
        match step:
            case "say", number, second:
                return self.ask(self.agents[second], "track_expected", proxies=MESSAGES[number])
            case "pass", _:
                return [sent.body for sent in self.desk.sweep()]
            case "reload", max_ttl, proxy_expiry:
                config = dataclasses.replace(
                    actor._config, max_ttl=max_ttl, proxy_expiry=proxy_expiry
                )
                actor.on_receive(Reload(config, actor._roles, ReloadOutcome(changed=("max_ttl",))))
                return None
            case ("forget",):
                return self.ask(admin, "forget", name="a")
            case ("adopt",):
                changes, replies = self.ask(admin, "adopt", principals=["a"])
                self.lease = replies[0].get("lease") or self.lease
                return changes, replies
            case ("retire" | "release" as op,):
                return self.ask(admin, op, lease=self.lease)
            case ("fail",):  # the next commit, whatever it stores
                self.faults.writes = True
                failed = self.ask(admin, "track_expected", proxies=[["d", "", 1, 60.0]])
                self.faults.writes = False
                return failed, [sent.body for sent in self.desk.sweep()]
            case _:
                self.desk.kill()
                self.start()
                return None

    def seen(self) -> dict[str, Any]:
        runtime, decide = self.desk.actor._runtime, self.desk.actor._decide
        metrics, history = runtime.metrics, self.desk.state.history
        events = history.after(0, 10**6, 1 << 40, older=True)
        return {
            **{key: each for key, each in observe(self.desk.state).items() if key not in _RANDOM},
            "kinds": [event[3] for event in events],
            "counted": (metrics.gossip_messages, metrics.gossip_proxies, metrics.limited_ttls),
            "lowered": (metrics.lowered_generations, metrics.errors, runtime.logged_max_ttl),
            "waiting": dict(decide.flips.waiting),
            "lone": dict(decide.lone._seen),
            "mentions": [
                (each.number, each.expiry, each.ttl, each.by, each.left, each.names)
                for each in self.desk.state.tracker.mentions.by_number.values()
            ],
        }


#: What two daemons do not share: chance, and the time of day.
_RANDOM = {"tracker_id", "events", "sessions", "leases", "ended"}


@contextmanager
def small_messages_are_kept() -> Iterator[None]:
    with patch("trackd.actors.mailbox.SMALL_GOSSIP", 0), patch.object(module, "_KEY_BYTES", 8):
        yield


@given(st.lists(STEPS, max_size=30))
def test_gossip_does_the_same_whether_it_is_known_by_its_bytes_or_not(
    steps: list[tuple[Any, ...]],
) -> None:
    clock = Clock()
    with (
        small_messages_are_kept(),
        tempfile.TemporaryDirectory(prefix="trackd-") as first,
        tempfile.TemporaryDirectory(prefix="trackd-") as second,
    ):
        hosts = [Host(first, clock, as_bytes=True), Host(second, clock, as_bytes=False)]
        try:
            for step in steps:
                if step[0] == "pass":
                    clock.now += step[1]
                for _ in range(3 if step[0] == "say" else 1):
                    done, same = (host.take(step) for host in hosts)
                    assert done == same, step
                    found, known = (host.seen() for host in hosts)
                    assert found == known, step
        finally:
            for host in hosts:
                host.desk.kill()
