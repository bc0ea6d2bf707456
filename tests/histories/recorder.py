"""Records the calls of trackers into files, and reads them: a history.

A line is written before a request is sent and another one after its reply has arrived, so that the
file of a process that was killed has the calls that had no reply, too. What a client does by itself
(it opens sessions, cancels what it gave up, releases stray grants) is recorded like all else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from math import inf
from pathlib import Path
from typing import Any

from histories.vocabulary import Call
from trackd_client import AsyncTracker, Event, Tracker
from trackd_client.core.conversation import Request
from trackd_client.wire.protocol import Reply

#: Requests that say nothing about the state.
_LEFT_OUT = frozenset({"hello", "ping", "heartbeat", "watch_session", "report", "log", "metrics"})


def record(tracker: Tracker | AsyncTracker, path: Path) -> None:
    """Record the calls of a tracker into a file of its own from now on."""
    conversation = tracker._conversation
    request, result = conversation.request, conversation.result
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)

    def write(*line: Any) -> None:
        os.write(file, json.dumps(line).encode() + b"\n")

    def recorded_request(op: str, fields: Any, deadline: Any, session: Any) -> Request:
        start = time.monotonic()
        made = request(op, fields, deadline, session)
        if op not in _LEFT_OUT:
            token = None if session is None else session.token.hex()
            write("call", made.seq, start, token, op, fields)
        return made

    def recorded_result(made: Request, reply: Reply, *, copied: bool) -> dict[str, Any]:
        if made.op not in _LEFT_OUT:
            write("reply", made.seq, time.monotonic(), reply.body)
        return result(made, reply, copied=copied)

    vars(conversation).update(request=recorded_request, result=recorded_result)


def read_history(paths: Iterable[Path]) -> list[Call]:
    """Return the calls in the files of recorders."""
    return [call for path in sorted(paths) for call in _read_file(path)]


def _read_file(path: Path) -> list[Call]:
    asked: dict[int, tuple[float, str | None, str, dict[str, Any]]] = {}
    replies: dict[int, tuple[float, dict[str, Any]]] = {}
    whole, _, _ = path.read_text().rpartition("\n")  # the last line may be half written yet
    for line in whole.splitlines():
        kind, seq, *rest = json.loads(line)
        if kind == "call":
            asked[seq] = (rest[0], rest[1], rest[2], rest[3])
        else:
            replies[seq] = (rest[0], rest[1])
    sessions = {
        asked[seq][1]: body["session"]
        for seq, (_, body) in replies.items()
        if asked[seq][2] == "open" and "error" not in body
    }
    calls = []
    for seq, (start, token, op, fields) in asked.items():
        end, reply = replies.get(seq, (inf, None))
        session = 0 if token is None else sessions.get(token, 0)
        if token is None or session:
            calls.append(Call(session, seq, op, start, end, fields, reply))
    return calls


def read_events(tracker: Tracker) -> list[Event]:
    """Return all events from the log of a daemon that keeps enough of them."""
    events: list[Event] = []
    while True:
        page = tracker.log(events[-1].revision if events else 0)
        events += page["events"]
        if not page["events"] or events[-1].revision >= page["newest"]:
            return events
