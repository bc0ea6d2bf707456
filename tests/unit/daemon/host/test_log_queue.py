"""The queue of log lines: nobody waits, nothing is lost without being counted."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator

import pytest

from helpers.support import PATIENCE, wait_until
from trackd.host import log_queue as module
from trackd.host.log_queue import DescriptorHandler, QueuedHandler
from trackd.host.logs import fields


class Gate(logging.Handler):
    """An output that takes nothing until it is opened, and keeps what it took."""

    def __init__(self) -> None:
        super().__init__()
        self.opened = threading.Event()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        assert self.opened.wait(PATIENCE)
        values = getattr(record, "fields", {})
        self.lines.append(" ".join([record.getMessage(), *(f"{k}={values[k]}" for k in values)]))


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


@pytest.fixture
def log(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    for name in ("FOLD_SECONDS", "FLUSH_SECONDS"):  # a machine may stand still for a second
        monkeypatch.setattr(module, name, PATIENCE)
    logger = logging.getLogger("trackd.test_log_queue")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.handlers[:] = [QueuedHandler(gate, most=10)]
    return logger


def handler_of(log: logging.Logger) -> QueuedHandler:
    (handler,) = [each for each in log.handlers if isinstance(each, QueuedHandler)]
    return handler


def test_lines_come_in_order(log: logging.Logger, gate: Gate) -> None:
    gate.opened.set()
    for number in range(9):
        log.info("event", extra=fields(number=number))
    handler_of(log).flush()
    assert gate.lines == [f"event number={number}" for number in range(9)]


def test_an_output_that_takes_nothing_costs_lines_which_are_counted(
    log: logging.Logger, gate: Gate
) -> None:
    for number in range(500):
        log.info("event", extra=fields(number=number))
    dropped = handler_of(log).dropped
    assert 489 <= dropped <= 490, "ten wait, and one may be under way"
    gate.opened.set()
    wait_until(lambda: len(gate.lines) == 500 - dropped + 1)
    assert gate.lines[-1].startswith("log lines dropped")
    assert gate.lines[-1].endswith(f"lines={dropped}")
    assert gate.lines[0] == "event number=0"


def test_equal_lines_are_written_once_with_their_number(log: logging.Logger, gate: Gate) -> None:
    for _ in range(500):
        log.warning("admin act refused", extra=fields(uid=7))
    log.warning("admin act refused", extra=fields(uid=8))
    gate.opened.set()
    handler_of(log).flush()
    assert gate.lines == [
        "admin act refused uid=7",
        "admin act refused uid=7 repeated=499",
        "admin act refused uid=8",
    ]


def test_repetitions_are_written_though_no_other_line_follows(
    log: logging.Logger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FOLD_SECONDS", 0.05)
    gate.opened.set()
    for _ in range(2):
        log.warning("event")
    wait_until(lambda: len(gate.lines) == 2)


def test_a_traceback_is_text_before_it_waits(
    log: logging.Logger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts: list[str | None] = []
    monkeypatch.setattr(gate, "emit", lambda record: texts.append(record.exc_text))
    try:
        raise ValueError("wrong")
    except ValueError:
        log.exception("unexpected failure")
    handler_of(log).flush()
    assert texts[0] is not None
    assert "ValueError: wrong" in texts[0]


def test_a_flush_gives_up_on_an_output_that_takes_nothing(
    log: logging.Logger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.05)
    log.info("event")
    handler_of(log).flush()
    assert gate.lines == []


def test_a_descriptor_gets_whole_lines_and_a_broken_one_is_an_error() -> None:
    reading, writing = os.pipe()
    handler = DescriptorHandler(writing)
    record = logging.LogRecord("trackd", logging.INFO, "", 0, "event \udcff", (), None)
    os.set_blocking(writing, False)
    reader = threading.Thread(target=lambda: got.append(os.read(reading, 100)))
    got: list[bytes] = []
    handler.emit(record)
    reader.start()
    reader.join(PATIENCE)
    assert got == [b"event \\udcff\n"]
    os.close(reading)
    with pytest.raises(BrokenPipeError):
        handler.emit(record)
    os.close(writing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        handler.emit(record)


def test_lines_that_cannot_be_written_are_counted_and_reported_once_one_can_be(
    log: logging.Logger, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate.opened.set()
    with monkeypatch.context() as broken:
        broken.setattr(gate, "emit", fail)
        for number in range(3):
            log.info("lost", extra=fields(number=number))
        handler_of(log).flush()
        assert handler_of(log).dropped == 3
    log.info("seen")
    wait_until(lambda: len(gate.lines) == 2)
    assert gate.lines[0] == "seen"
    assert gate.lines[1].startswith("log lines dropped")


def fail(_record: logging.LogRecord) -> None:
    raise OSError("no space left")
