"""What a daemon sent and cannot be read is a `NoAnswer`, never what reading it raised."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from trackd_client import NoAnswer, SessionLost
from trackd_client.core import calls
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.core.reading import read, reads
from trackd_client.core.stream import Stream, read_log, read_rows


@pytest.mark.parametrize("body", [{}, {"claim": True, "status": 7}])
def test_a_reply_without_its_fields_is_no_answer(body: dict[str, Any]) -> None:
    with pytest.raises(NoAnswer, match="a reply to is_claimed that cannot be read"):
        calls.is_claimed(("p1",)).result(body)
    with pytest.raises(NoAnswer, match="a reply to offer that cannot be read"):
        calls.offer(1).result(body)


def test_what_a_reader_refuses_itself_stays_as_it_is() -> None:
    def refuse() -> None:
        raise SessionLost("it has ended")

    with pytest.raises(SessionLost):
        read("a reply", refuse)

    @reads
    def steps() -> Generator[int, Any, None]:
        yield 1
        refuse()

    with pytest.raises(SessionLost):
        list(steps())


def test_an_event_without_its_fields_is_no_answer() -> None:
    mirror = Mirror()
    with pytest.raises(NoAnswer, match="an event proxy_claimed that cannot be read"):
        mirror.apply(Event(1, 0.0, 0.0, "proxy_claimed", {}))
    mirror.apply(Event(2, 0.0, 0.0, "lease_granted", {"lease": "x", "session": None}))
    with pytest.raises(NoAnswer, match="cannot be read"):
        mirror.snapshot()


@pytest.mark.parametrize("steps", [read_log(0), read_rows("leases"), Stream().once()])
def test_steps_end_with_no_answer_when_a_reply_cannot_be_read(steps: Any) -> None:
    next(steps)
    with pytest.raises(NoAnswer, match="that cannot be read"):
        steps.send({"rows": 7, "events": 7})
