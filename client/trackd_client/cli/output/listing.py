"""What `proxies`, `leases` and `sessions` share: options, order, and how much of it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import click

from trackd_client import Tracker
from trackd_client.cli import common
from trackd_client.cli.output.render import Cell, Column, Page, natural_key, note_rest
from trackd_client.core.mirror import Row
from trackd_client.wire.clock import boottime

F = TypeVar("F", bound=Callable[..., Any])


def options(*fields: str) -> Callable[[F], F]:
    """Add the options that every listing has.

    Args:
        fields: by which it can be sorted; the first one unless something else is asked for.
    """

    def add(function: F) -> F:
        for option in (
            common.json_option("Print JSON."),
            click.option(
                "--limit",
                type=click.IntRange(min=0),
                metavar="ROWS",
                help="Show so many at most; 0: all. On a terminal 50 by default.",
            ),
            click.option("--reverse", is_flag=True, help="Reverse the order."),
            click.option(
                "--sort",
                type=click.Choice(fields),
                default=fields[0],
                metavar="FIELD",
                help=f"The order: {', '.join(fields)}. What has no value comes last.",
            ),
        ):
            function = option(function)
        return function

    return add


def sort_rows(rows: Iterable[Row], field: str, then: str, *, reverse: bool) -> list[Row]:
    """Return rows in the order of a field: p2 before p10, and what has no value at the end.

    Args:
        rows: what is to be sorted.
        field: by which.
        then: by which those are sorted that are alike in it, from small to large.
        reverse: whether to begin with the largest.
    """
    inner = sorted(rows, key=lambda row: _key(row[then]))
    valued = [row for row in inner if row[field] not in {None, ""}]
    empty = [row for row in inner if row[field] in {None, ""}]
    return sorted(valued, key=lambda row: _key(row[field]), reverse=reverse) + empty


def _key(value: Any) -> Any:
    return natural_key(value) if isinstance(value, str) else value


def matches(patterns: Sequence[str], *texts: str | None) -> bool:
    """Tell whether one of the texts is like one of the patterns, or no pattern was given."""
    return not patterns or any(
        text is not None and fnmatchcase(text, pattern) for pattern in patterns for text in texts
    )


def show(
    columns: Sequence[Column],
    rows: Sequence[Row],
    cells: Callable[[Row], Sequence[str | Cell]],
    *,
    limit: int | None,
    of: tuple[str, int],
) -> None:
    """Print a listing for people.

    Args:
        columns: of the table.
        rows: all that passed the filters.
        cells: makes a row's cells.
        limit: as it was asked for.
        of: what the rows are called, and how many there are without filters.
    """
    page = Page()
    word, total = of
    if not rows:
        page.note(_say_nothing_found(word, total))
        return
    shown = rows[: page.limit(limit)]
    page.table(columns, [cells(row) for row in shown])
    note_rest(len(shown), len(rows), page)


def _say_nothing_found(word: str, total: int) -> str:
    if not total:
        return f"there are no {word}"
    if word == "proxies":
        return f"no proxy matches ({total} tracked)"
    return f"no {word.removesuffix('s')} matches ({total} in all)"


def make_document(name: str, rows: Sequence[Row], limit: int | None, **fields: object) -> Row:
    """Return a listing as the JSON document that scripts get."""
    return {**fields, "total": len(rows), name: rows[:limit] if limit else rows}


def seconds_until(tracker: Tracker, moment: float | None) -> float | None:
    """Return how many seconds it is to a moment of the daemon's clock; negative: it is past."""
    if moment is None:
        return None
    return tracker._conversation.local(moment) - boottime()  # noqa: SLF001 - the package's own


def seconds_since(tracker: Tracker, moment: float | None) -> float | None:
    """Return how many seconds ago a moment of the daemon's clock was, or None without one."""
    left = seconds_until(tracker, moment)
    return None if left is None else max(0.0, -left)


def find_holder(sessions: Mapping[int, Row], number: int | None) -> tuple[str | None, str | None]:
    """Return the command and the name of a session; None for what is not known."""
    row = {} if number is None else sessions.get(number, {})
    return row.get("command"), row.get("name")
