"""What reads bytes that others wrote, and what must hold whatever these bytes are.

Each target takes a source of chance and a number of inputs, and raises when one of them broke
something. The same chance gives the same inputs.
"""

from __future__ import annotations

import shutil
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import Any, Final

import msgpack

from fuzz import inputs
from helpers.support import GREETING, RawPeer, ready, serves, socket_path, zmtp_frame
from helpers.writer import Clock, Desk, Host, open_session
from trackd.storage.database import seal
from trackd.storage.files import FILE_NAME
from trackd_client.core import calls
from trackd_client.core.discovery import read_gossip
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.core.stream import read_page, read_published
from trackd_client.errors import BadPayload, Code, NoAnswer
from trackd_client.testing import Daemon
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import decode_reply

#: Inputs between two looks at the daemon, and after which a peer begins a session of its own.
LOOK: Final = 100
SESSION: Final = 2_000

#: Calls that read more of a reply than that it has come.
CALLS: Final = (
    calls.status(),
    calls.explain(None),
    calls.explain("p1"),
    calls.is_claimed(("p1",)),
    calls.retire(1),
    calls.offer(1),
    calls.metrics(),
    calls.config(),
    calls.reload(),
)

#: Called with the number of inputs that are done.
Progress = Callable[[int], None]


class Broken(Exception):
    """An input broke something; the text says which and how."""


# -- the daemon's socket ----------------------------------------------------------------


def fuzz_socket(daemon: Daemon, chance: Random, count: int, progress: Progress) -> None:
    """Send requests that are almost right to a real daemon.

    A good request after every hundred of them must be answered. No reply may be an internal error.
    """
    corpus = inputs.requests()
    done = 0
    while done < count:
        with RawPeer(daemon.endpoint) as peer:
            peer.open()
            for _ in range(min(SESSION, count - done) // LOOK or 1):
                sent = [_request(chance, corpus, peer.token) for _ in range(LOOK)]
                for frames in sent:
                    peer.send(*frames)
                _look(peer, sent)
                done += LOOK
                progress(done)
            # Not answered when a request before said that all numbers are done.
            peer.send(inputs.pack([1, 1, {"op": "close", "seq": 2**62, "token": peer.token}]))
            peer.ask({"op": "ping", "seq": 1})


def _request(chance: Random, corpus: list[tuple[bytes, Any]], token: bytes) -> list[bytes]:
    frame, value = chance.choice(corpus)
    if chance.random() < 0.8:
        version, kind, body = value
        if "token" in body and chance.random() < 0.9:
            body = body | {"token": token}
        # Mostly numbers that were not there before, and not the last one, by which we look.
        if chance.random() < 0.9:
            body = body | {"seq": chance.randrange(1, 2**62)}
            body.pop("done", None)
        message: Any = [version, kind, body]
        for _ in range(chance.choice((1, 1, 2, 4))):
            message = change_body(chance, message)
        frame = inputs.pack(message)
    if chance.random() < 0.3:
        frame = inputs.damage(chance, frame)
    return [frame] if chance.random() < 0.98 else [frame, inputs.damage(chance, frame)]


def change_body(chance: Random, message: Any) -> Any:
    """Change a message, mostly below its body."""
    if isinstance(message, list) and len(message) == 3 and chance.random() < 0.9:
        return [*message[:2], inputs.change(chance, message[2])]
    return inputs.change(chance, message)


def _look(peer: RawPeer, sent: list[list[bytes]]) -> None:
    """Read what came back, up to the reply to a ping."""
    last = 2**63 + 1
    peer.send(inputs.pack([1, 1, {"op": "ping", "seq": last}]))
    while (reply := peer.receive()) is not None:
        if reply["seq"] == last:
            return
        if reply.get("error") in {Code.INTERNAL, Code.UNAVAILABLE}:
            break
    raise Broken(f"after {[frame.hex() for frames in sent for frame in frames]}: {reply}")


def fuzz_transport(daemon: Daemon, chance: Random, count: int, progress: Progress) -> None:
    """Speak what is almost ZMTP, or nothing like it, into the daemon's socket."""
    ping = zmtp_frame(inputs.pack([1, 1, {"op": "ping", "seq": 1}]))
    for i in range(count):
        said = inputs.damage(
            chance, GREETING + ready(Socket_Type=b"DEALER") + ping * chance.randrange(3)
        )
        if chance.random() < 0.2:
            said = chance.randbytes(chance.randrange(1, 300))
        with closing(socket.socket(socket.AF_UNIX)) as peer, suppress(OSError):
            peer.settimeout(5.0)
            peer.connect(str(socket_path(daemon)))
            peer.sendall(said)
        if i % LOOK == 0 and not serves(daemon):
            raise Broken(f"the daemon is silent after {said.hex()}")
        progress(i + 1)
    if not serves(daemon):
        raise Broken("the daemon is silent at the end")


# -- what the client reads --------------------------------------------------------------


def fuzz_gossip(chance: Random, count: int, progress: Progress) -> None:
    """Read gossip as JSON: a proxy for each good entry, or `BadPayload`."""
    corpus = inputs.gossip()
    for i in range(count):
        document = chance.choice(corpus)
        for _ in range(chance.choice((1, 2, 4))):
            document = inputs.change(chance, document)
        payload = inputs.to_json(document)
        if chance.random() < 0.3:
            payload = inputs.damage(chance, payload)
        try:
            read = read_gossip([payload])
        except BadPayload:
            continue
        except Exception as error:
            raise Broken(f"{payload!r}: {error!r}") from error
        finally:
            progress(i + 1)
        if not all(proxy.name for proxy in read.proxies):
            raise Broken(f"{payload!r}: {read}")


def fuzz_replies(chance: Random, count: int, progress: Progress) -> None:
    """Read replies and event messages: what they say, or an error that says it cannot be read."""
    corpus, mirror = inputs.replies(), Mirror()
    for i in range(count):
        frame, value = chance.choice(corpus)
        if chance.random() < 0.8:
            for _ in range(chance.choice((1, 2, 4))):
                value = change_body(chance, value)
            frame = inputs.pack(value)
        if chance.random() < 0.3:
            frame = inputs.damage(chance, frame)
        try:
            with suppress(NoAnswer):
                for event in _events(frame):
                    mirror.apply(event)
                mirror.snapshot()
            with suppress(ProtocolError, NoAnswer):
                reply = decode_reply(frame)
                for call in CALLS:
                    with suppress(NoAnswer):
                        call.result({} if reply is None else reply.body)
        except Exception as error:
            raise Broken(f"{frame.hex()}: {error!r}") from error
        if i % LOOK == 0:
            mirror = Mirror()
        progress(i + 1)


def _events(frame: bytes) -> Iterator[Event]:
    """Yield the events in an event message, or in a reply to `log`."""
    message = read_published(frame)
    if message is not None:
        yield from message.events
    with suppress(ProtocolError, NoAnswer):
        reply = decode_reply(frame)
        if reply is not None and "events" in reply.body:
            yield from read_page(reply.body)


# -- the state file ---------------------------------------------------------------------


def fuzz_state(place: Path, chance: Random, count: int, progress: Progress) -> None:
    """Start on state files whose rows or bytes were changed: each daemon works after its start.

    Args:
        place: an empty directory.
        chance: decides about the inputs.
        count: how many.
        progress: told after each.
    """
    for i in range(count):
        whole, directory = place / "whole", place / "changed"
        if i % LOOK == 0:
            shutil.rmtree(whole, ignore_errors=True)
            fill(whole, chance)
        shutil.rmtree(directory, ignore_errors=True)
        shutil.copytree(whole, directory)
        if chance.random() < 0.7:
            said = _change_row(chance, directory / FILE_NAME)
        else:
            frame = inputs.damage(chance, (directory / FILE_NAME).read_bytes())
            (directory / FILE_NAME).write_bytes(frame)
            said = "damaged bytes"
        try:
            desk = Desk(directory, Clock())
            try:
                agent = open_session(desk, Host(), 9)
                agent.ask(desk, "try_acquire")
                agent.ask(desk, "status")
                agent.ask(desk, "snapshot", of="leases", cursor=None, limit=100)
                desk.sweep()
            finally:
                desk.kill()
        except Exception as error:
            raise Broken(f"input {i}, {said}: {error!r}") from error
        progress(i + 1)


def fill(directory: Path, chance: Random) -> None:
    """Make the state file of a daemon that has done some of everything."""
    directory.mkdir()
    desk, host = Desk(directory, Clock()), Host()
    agents = [open_session(desk, host, number) for number in (1, 2, 3)]
    rows = [[f"p{i}", chance.choice(("", "g")), i % 3, None] for i in range(6)]
    agents[0].ask(desk, "track_expected", proxies=[*rows, ["t", "", 0, None, {"address": "t:1"}]])
    for agent in agents:
        for name in chance.sample([row[0] for row in rows], 2):
            lease = agent.ask(desk, "try_acquire").get("lease")
            if lease is not None:
                agent.ask(desk, "claim", lease=lease, principals=[name])
    agents[2].ask(desk, "release", lease=1)
    desk.kill()


def _change_row(chance: Random, path: Path) -> str:
    """Change a value in the file, with a right checksum; return what it is now."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        rows = [
            *db.execute("SELECT 'journal', id, changes FROM journal"),
            *db.execute("SELECT kind, key, value FROM state WHERE value IS NOT NULL"),
        ]
        table, key, sealed = chance.choice(rows)
        value = msgpack.unpackb(sealed[4:], strict_map_key=False)
        for _ in range(chance.choice((1, 2, 4))):
            value = inputs.change(chance, value)
        packed = inputs.pack(value)
        if table == "journal":
            db.execute("UPDATE journal SET changes = ? WHERE id = ?", (seal(packed), key))
        else:
            db.execute(
                "UPDATE state SET value = ? WHERE kind = ? AND key = ?",
                (seal(packed, table.encode() + key), table, key),
            )
        return f"{table} {key!r}: {value!r}"
