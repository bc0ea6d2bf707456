"""One event is one line, for people and for the journal."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackd.host import logs
from trackd.host.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger("trackd.test")


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("trackd")
    before = (root.handlers[:], root.level, ours.level)
    yield
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.setup("info", stream, {})
    return stream


def journal_line(event: str, values: dict[str, object], level: int = logging.INFO) -> str:
    record = logging.LogRecord("trackd.x", level, "", 0, event, (), None)
    record.__dict__.update(fields(**values))
    return logs.JournalFormatter().format(record)


def test_a_line_has_a_time_a_level_the_event_and_its_fields(out: io.StringIO) -> None:
    log.info("session opened", extra=fields(session=3, pid=12))
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}[+-]\d{4}"
    assert re.fullmatch(f"{time} info session opened session=3 pid=12\n", out.getvalue())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3, "3"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "none"),
        ("p1.example.com", "p1.example.com"),
        ("", '""'),
        ("two words", '"two words"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        ("back\\slash", r'"back\\slash"'),
        ("line\nbreak", r'"line\nbreak"'),
        ("\x1b[31mred", r'"\x1b[31mred"'),
        ("\x9b31m\u2028", r'"\x9b31m\u2028"'),
        ("\udcff", r'"\udcff"'),
        ("Zürich", "Zürich"),
    ],
)
def test_a_value_is_one_word_or_in_quotes(value: object, text: str) -> None:
    assert journal_line("x", {"value": value}) == f"<6>x value={text}"


@given(st.text(), st.dictionaries(st.sampled_from("abc"), st.text()))
def test_one_event_is_one_line_without_control_characters(
    event: str, values: dict[str, object]
) -> None:
    line = journal_line(event, values)
    assert line.isprintable()
    assert line.splitlines() == [line]


@pytest.mark.parametrize(
    ("level", "priority"),
    [
        (logging.DEBUG, 7),
        (logging.INFO, 6),
        (logging.WARNING, 4),
        (logging.ERROR, 3),
        (logging.CRITICAL, 2),
    ],
)
def test_the_journal_gets_a_priority_and_no_time(level: int, priority: int) -> None:
    line = journal_line("stopped", {"reason": "asked"}, level)
    assert line == f"<{priority}>stopped reason=asked"


def test_an_exception_stays_on_its_line(out: io.StringIO) -> None:
    try:
        raise KeyError("missing")
    except KeyError:
        log.exception("actor died", extra=fields(actor="tracker"))
    (line,) = out.getvalue().splitlines()
    assert ' error actor died actor=tracker exception="Traceback (most recent call last):' in line
    assert line.endswith("KeyError: 'missing'\"")


class Unprintable:
    def __str__(self) -> str:
        raise AssertionError("formatted for a level that is off")


def test_nothing_is_formatted_for_a_level_that_is_off(out: io.StringIO) -> None:
    log.debug("request", extra=fields(value=Unprintable()))
    assert out.getvalue() == ""


def test_the_level_changes_when_set_up_again_and_no_line_comes_twice(out: io.StringIO) -> None:
    logs.setup("debug", out, {})
    log.debug("heard")
    logs.setup("error", out, {})
    log.warning("unheard")
    assert out.getvalue().count("heard") == 1


def test_other_packages_are_heard_from_warnings_up_and_named(out: io.StringIO) -> None:
    logs.setup("debug", out, {})
    logging.getLogger("pykka").debug("unheard")
    logging.getLogger("pykka").warning("heard of %d", 3)
    assert out.getvalue().endswith(" warning heard of 3 logger=pykka\n")
    assert "unheard" not in out.getvalue()


def test_the_journal_is_known_by_the_device_and_inode_of_its_stream(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as journal, (tmp_path / "b").open("w") as other:
        found = os.fstat(journal.fileno())
        environ = {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        assert logs.is_journal(journal, environ)
        assert not logs.is_journal(other, environ)
        assert not logs.is_journal(journal, {})
    assert not logs.is_journal(io.StringIO(), environ)
    assert not logs.is_journal(journal, environ)  # closed by now


def test_without_journald_s_socket_the_journal_gets_lines_with_their_priority(
    tmp_path: Path,
) -> None:
    code = (
        "import logging; from pathlib import Path; from trackd.host import logs; "
        "logs.setup('info', journal=Path('/nowhere')); "
        "logging.getLogger('trackd').info('ready', extra=logs.fields(pid=1))"
    )
    with (tmp_path / "stderr").open("w+") as stream:
        found = os.fstat(stream.fileno())
        environ = os.environ | {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}
        subprocess.run([sys.executable, "-c", code], check=True, stderr=stream, env=environ)
        stream.seek(0)
        assert stream.read() == "<6>ready pid=1\n"
