"""How things look: tables, times, and colours on a terminal only. Shared by the subcommands."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

import click
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from trackd_client.cli.output.shorten import measure, shorten
from trackd_client.cli.text import escape

#: Rows of a table on a terminal, by default.
TERMINAL_ROWS: Final = 50
#: A column is not made narrower than this.
_LEAST_WIDTH: Final = 8
#: Text is not folded into fewer columns than this.
_LEAST_TEXT: Final = 20
_GAP: Final = "  "


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        name: its heading.
        right: whether it is a number, which stands at the right.
        shrinks: whether a narrow terminal may cut it.
        spare: whether a narrow terminal may do without it; the largest goes first, 0 never.
    """

    name: str
    right: bool = False
    shrinks: bool = False
    spare: int = 0


class Cell(NamedTuple):
    """A cell that is not just text."""

    text: str
    style: str = ""


class Page:
    """Standard output: how wide it is, and whether it takes colours."""

    def __init__(self) -> None:
        console = Console(highlight=False)
        colourful = console.color_system is not None and not console.no_color
        self._colours = ColorSystem.STANDARD if colourful else None
        self.terminal = sys.stdout.isatty()
        #: Columns of the terminal; None in a pipe or a file.
        self.width = console.width if self.terminal else None

    def paint(self, text: str, style: str) -> str:
        """Return a text in a style, where there are colours."""
        if not style or self._colours is None:
            return text
        return Style.parse(style).render(text, color_system=self._colours)

    def line(self, text: str = "") -> None:
        """Print a line."""
        click.echo(text, color=True)  # paint knows better whether there are colours

    def say(self, text: str, style: str = "") -> None:
        """Print a sentence, folded between words where a terminal is narrow."""
        for folded in self.folded(text):
            self.line(self.paint(folded, style))

    def note(self, text: str) -> None:
        """Print a remark on standard error, so that a pipe gets the answer only."""
        for folded in self.folded(text):
            click.echo(self.paint(folded, "dim") if self.terminal else folded, err=True)

    def folded(self, text: str, used: int = 0) -> list[str]:
        """Return a text in lines that fit beside what is used of a terminal's width."""
        if self.width is None or used + _LEAST_TEXT > self.width:
            return [text]
        return textwrap.wrap(text, self.width - used) or [""]

    def limit(self, asked: int | None) -> int | None:
        """Return how many rows to show: as many as asked for (0: all), or what a person reads."""
        if asked is None:
            return TERMINAL_ROWS if self.terminal else None
        return asked or None

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> None:
        """Print a table: whole in a pipe, cut to the width of a terminal."""
        kept = list(range(len(columns)))
        if self.width is not None:
            kept = _kept(columns, rows, self.width)
        shown = [columns[i] for i in kept]
        drawn = draw_table(shown, [[row[i] for i in kept] for row in rows], self.width)
        painted = ("".join(self.paint(*cell) for cell in line).rstrip() for line in drawn)
        self.line("\n".join(painted))
        if left := [column.name for column in columns if column not in shown]:
            self.note(f"not shown, the terminal is too narrow: {', '.join(left)}")

    def pairs(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Print names and what they are, one a line; a name may be empty."""
        listed = list(pairs)
        width = max((len(name) for name, _ in listed), default=0)
        for name, text in listed:
            self.line(f"{self.paint(name.ljust(width), 'dim')}{_GAP}{text}".rstrip())


def draw_table(
    columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]], most: int | None
) -> Iterator[list[Cell]]:
    """Return the lines of a table: its heading, and each row, as texts with their styles.

    Args:
        columns: of the table.
        rows: their cells; one that is just text has no style.
        most: how wide it may be, or None for as wide as it gets.
    """
    widths = _widths(columns, rows)
    if most is not None:
        _shrink(widths, columns, most)
    looks: list[dict[str, str]] = [{} for _ in columns]
    if most is not None:
        looks = [shorten([_text(row[i]) for row in rows], width) for i, width in enumerate(widths)]
    heading = [Cell(column.name, "dim") for column in columns]
    for row in [heading, *rows]:
        line: list[Cell] = []
        for column, cell, width, look in zip(columns, row, widths, looks, strict=True):
            text, style = (cell.text, cell.style) if isinstance(cell, Cell) else (cell, "")
            text = look.get(text, text)
            blank = " " * (width - measure(text))
            text = f"{blank}{text}" if column.right else f"{text}{blank}"
            line.append(Cell(f"{text}{_GAP}", style))
        # Blanks in a colour cannot be stripped later, and would make a full line too long.
        line[-1] = Cell(line[-1].text.rstrip(), line[-1].style)
        yield line


def note_rest(shown: int, total: int, page: Page) -> None:
    """Say on standard error how many rows were left out, so that a pipe holds rows only."""
    if shown < total:
        page.note(f"{total - shown} more of {total}; --limit 0 shows all, filters show fewer")


def _widths(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]]) -> list[int]:
    """Return how wide each column is when nothing is cut."""
    return [
        max([measure(column.name), *(measure(_text(row[i])) for row in rows)])
        for i, column in enumerate(columns)
    ]


def _kept(columns: Sequence[Column], rows: Sequence[Sequence[str | Cell]], most: int) -> list[int]:
    """Return which columns there is room for, once those that may be cut are."""
    needed = [
        min(width, max(_LEAST_WIDTH, len(column.name))) if column.shrinks else width
        for column, width in zip(columns, _widths(columns, rows), strict=True)
    ]
    kept = list(range(len(columns)))
    while sum(needed[i] + len(_GAP) for i in kept) - len(_GAP) > most:
        spare = max(kept, key=lambda i: columns[i].spare)
        if not columns[spare].spare:
            break
        kept.remove(spare)
    return kept


def _shrink(widths: list[int], columns: Sequence[Column], most: int) -> None:
    """Make the widest columns narrower until the table fits, or none can be."""
    while sum(widths) + len(_GAP) * (len(widths) - 1) > most:
        wide = [
            i
            for i, column in enumerate(columns)
            if column.shrinks and widths[i] > max(_LEAST_WIDTH, len(column.name))
        ]
        if not wide:
            return
        widths[max(wide, key=lambda i: widths[i])] -= 1


def _text(cell: str | Cell) -> str:
    return cell.text if isinstance(cell, Cell) else cell


_DIGITS: Final = re.compile(r"(\d+)")


def natural_key(text: str) -> list[tuple[int, int, str]]:
    """Return a key that sorts p2 before p10."""
    parts = _DIGITS.split(text)
    return [(0, int(part), "") if i % 2 else (1, 0, part) for i, part in enumerate(parts)]


def format_value(value: object) -> str:
    """Return a value as a cell shows it: a dash for nothing, and an empty name as it is."""
    if value is None:
        return "-"
    return escape(value) if value != "" else '""'


def format_duration(seconds: float) -> str:
    """Return a duration as people say it: 59s, 3m 20s, 5h 2m, 3d 4h."""
    whole = int(seconds)
    for size, unit, small_size, small in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // small_size}{small}"
    return f"{whole}s"


def format_remaining(seconds: float) -> str:
    """Return how long something lasts yet."""
    return format_duration(seconds) if seconds >= 0 else "over"


def format_rtt(seconds: float) -> str:
    """Return a round-trip time for people."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def format_time(wall: float, *, today: bool = False) -> str:
    """Return a moment of Unix time in this host's zone, to the millisecond.

    Args:
        wall: the moment.
        today: whether the day is left out when it is today.
    """
    local = datetime.fromtimestamp(wall).astimezone()
    day = "" if today and local.date() == datetime.now().astimezone().date() else "%Y-%m-%d "
    return local.strftime(f"{day}%H:%M:%S.%f")[:-3]


def format_size(count: int) -> str:
    """Return a number of bytes as people say it."""
    for unit, divisor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= divisor:
            return f"{count / divisor:.1f} {unit}"
    return f"{count} B"


def format_count(count: int, word: str, many: str = "") -> str:
    """Return a count with its word: 1 lease, 2 leases."""
    return f"{count} {word if count == 1 else many or f'{word}s'}"


def format_names(found: Sequence[Any], total: int | None = None, most: int = 10) -> str:
    """Return a list of names in words, cut when it is long."""
    total = len(found) if total is None else total
    text = ", ".join(format_value(name) for name in found[:most])
    rest = total - min(len(found), most)
    return f"{text} and {rest} more" if rest > 0 else text
