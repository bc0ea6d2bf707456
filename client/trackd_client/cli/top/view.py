"""What `trackctl top` shows, and what keys make of it. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from rich.console import Group
from rich.text import Text

from trackd_client.cli.output import event_lines, listing
from trackd_client.cli.output.render import (
    Cell,
    Column,
    draw_table,
    format_count,
    format_duration,
    format_names,
    format_value,
)
from trackd_client.cli.output.verdict import (
    DIALLING_SECONDS,
    describe_coverage,
    describe_desired,
    describe_gaps,
    judge,
)
from trackd_client.cli.text import escape
from trackd_client.cli.top.feed import EVENTS, Feed
from trackd_client.core.mirror import Row

#: The mirror is sorted again at most in this share of the time, however large it is.
_SORTING_SHARE: Final = 0.1
_FILTERS: Final[dict[str, Callable[[Row], bool]]] = {
    "all": lambda _row: True,
    "missing": lambda row: bool(row["desired"] and row["lease"] is None),
    "claimed": lambda row: row["lease"] is not None,
    "undesired": lambda row: not row["desired"],
}
_PROXIES: Final = (
    Column("name", shrinks=True),
    Column("group", shrinks=True),
    Column("generation", right=True),
    Column("desired", shrinks=True),
    Column("lease", right=True),
    Column("session", right=True),
    Column("pid", right=True),
    Column("held by", shrinks=True),
)
_AGENTS: Final = (
    Column("session", right=True),
    Column("pid", right=True),
    Column("agent", shrinks=True),
    Column("leases", right=True),
    Column("in flight", right=True),
    Column("waiting", right=True),
    Column("gossip", right=True),
    Column("requests", right=True),
)
_SORTS: Final = {
    "proxies": ("name", "group", "generation", "desired", "lease", "session", "pid", "agent"),
    "agents": ("session", "pid", "agent", "leases", "inflight", "waiting", "gossip", "requests"),
}


class View:
    """The picture, and what keys make of it. Used by the main thread only."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self.frozen = False
        self._of = "proxies"
        self._sorts = {"proxies": 0, "agents": 0}
        self._reverse = False
        self._filter = "all"
        self._text = ""
        self._typing = False
        self._offset = 0
        self._page = 1
        self._sorted: tuple[list[Row], int] = ([], 0)
        self._stale = True
        self._sort_again = 0.0

    def press(self, key: str) -> bool:
        """Do what a key means; return whether to go on."""
        self._stale = True
        if self._typing:
            self._type(key)
            return True
        match key:
            case "q":
                return False
            case "tab":
                self._of = "agents" if self._of == "proxies" else "proxies"
                self._offset = 0
            case "s":
                fields = _SORTS[self._of]
                self._sorts[self._of] = (self._sorts[self._of] + 1) % len(fields)
            case "r":
                self._reverse = not self._reverse
            case "f":
                kinds = list(_FILTERS)
                self._filter = kinds[(kinds.index(self._filter) + 1) % len(kinds)]
                self._offset = 0
            case "/":
                self._typing, self._text = True, ""
            case "escape":
                self._text = ""
            case " ":
                self.frozen = not self.frozen
            case _:
                self._scroll(key)
        return True

    def _type(self, key: str) -> None:
        self._offset = 0
        if key in {"enter", "tab"}:
            self._typing = False
        elif key == "escape":
            self._typing, self._text = False, ""
        elif key == "backspace":
            self._text = self._text[:-1]
        elif len(key) == 1 and key.isprintable():
            self._text += key

    def _scroll(self, key: str) -> None:
        steps = {"up": -1, "down": 1, "page up": -self._page, "page down": self._page}
        if key == "home":
            self._offset = 0
        elif key == "end":
            self._offset = len(self._sorted[0])
        else:
            self._offset += steps.get(key, 0)

    def draw(self, width: int, height: int) -> Group:
        """Return what fills the terminal."""
        with self._feed.lock:
            head = [*self._head(width)]
            events = [*self._last_events(min(EVENTS, max(0, height - 17)))]
            foot = [_rule("events", width), *events] if events else []
            self._page = max(1, height - len(head) - len(foot) - 3)  # a rule, a heading, the help
            table = [*self._table(width)]
        table += [Text()] * (self._page + 1 - len(table))
        rule = _rule(self._title(), width)
        return Group(*(_cut(line, width) for line in [*head, rule, *table, *foot, self._help()]))

    def _head(self, width: int) -> Iterator[Text]:
        status = self._feed.status
        if not status:
            yield Text(self._feed.trouble or "asking the daemon ...", "yellow")
            return
        ago = max(0.0, time.time() - self._feed.granted)
        words = judge(status, ago if ago <= DIALLING_SECONDS else None)
        first = Text.assemble((escape(status["cluster"]), "bold"), "  ", words)
        if self._feed.trouble:
            first = Text(f"no answer: {escape(self._feed.trouble)}", "bold red")
        yield first
        count = status["connection_count"]
        mode = escape(status["mode"]) + ("" if count <= 0 else f", at most {count}")
        yield Text(
            f"{mode} · up {format_duration(status['uptime'])} · epoch {status['epoch']}"
            f" · revision {self._feed.mirror.revision} · store {escape(status['store'])}"
        )
        yield _bar(status, width)
        full_at = self._feed.seconds_until(status.get("full_at"))
        if coverage := describe_coverage(status, full_at):
            yield Text(coverage)
        if gaps := describe_gaps(status):
            yield Text(gaps)
        rates = "  ".join(f"{name} {_rate(rate)}" for name, rate in self._feed.rates.items())
        yield Text(f"/s  {rates or '...'}", "dim")
        yield self._waiting()

    def _waiting(self) -> Text:
        status = self._feed.status
        waits = [
            event_lines.describe_agent(row)
            + (f" {row['waiting']} times" if row["waiting"] > 1 else "")
            for row in self._feed.sessions.values()
            if row["waiting"]
        ]
        text = Text(
            f"{format_count(status['sessions'], 'session')} · {status['inflight']} in flight"
            " · waiting: "
        )
        text.append(f"{status['waiting']}", "bold" if status["waiting"] else "")
        return text.append(f" ({format_names(waits, most=20)})" if waits else "", "dim")

    def _title(self) -> str:
        found, everything = self._sorted
        first = min(self._offset + 1, len(found))
        last = min(self._offset + self._page, len(found))
        words = [f"{self._of} {first}-{last} of {len(found)}"]
        if len(found) < everything:
            words[0] += f" ({everything} in all)"
        field = _SORTS[self._of][self._sorts[self._of]]
        words.append(f"sort {field} {'▼' if self._reverse else '▲'}")
        if self._of == "proxies" and self._filter != "all":
            words.append(f"only {self._filter}")
        if self._text or self._typing:
            words.append(f"/{self._text}{'_' if self._typing else ''}")
        if self.frozen:
            words.append("PAUSED")
        return " · ".join(words)

    def _table(self, width: int) -> Iterator[Text]:
        found = self._arranged()
        self._offset = max(0, min(self._offset, len(found) - self._page))
        part = found[self._offset : self._offset + self._page]
        columns, cells = (_PROXIES, _proxy) if self._of == "proxies" else (_AGENTS, _agent)
        for line in draw_table(columns, [cells(row) for row in part], width):
            yield Text.assemble(*line)

    def _arranged(self) -> list[Row]:
        """Return the rows that pass the filters, sorted; not too often when they are many."""
        now = time.monotonic()
        if not self._stale and now < self._sort_again:
            return self._sorted[0]
        self._stale = False
        rows = self._proxies() if self._of == "proxies" else self._agents()
        found = [row for row in rows if self._passes(row)]
        fields = _SORTS[self._of]
        field = fields[self._sorts[self._of]]
        ordered = listing.sort_rows(found, field, fields[0], reverse=self._reverse)
        self._sorted = ordered, len(rows)
        took = time.monotonic() - now
        self._sort_again = now + took / _SORTING_SHARE
        return self._sorted[0]

    def _proxies(self) -> list[Row]:
        sessions = self._feed.mirror.sessions
        rows = self._feed.mirror.snapshot()["proxies"]
        return [{**row, "agent": _who(sessions.get(row["session"]))} for row in rows]

    def _agents(self) -> list[Row]:
        rows = self._feed.sessions.values()
        return [{**row, "agent": _who(row)} for row in rows]

    def _passes(self, row: Row) -> bool:
        if self._of == "agents":
            return self._text in row["agent"]
        return self._text in row["name"] and _FILTERS[self._filter](row)

    def _last_events(self, count: int) -> Iterator[Text]:
        events = list(self._feed.events)[-count:] if count else []
        for event in events:
            when = time.strftime("%H:%M:%S", time.localtime(event.wall))
            text = event_lines.format_cell(event, self._feed.people)
            yield Text.assemble((when, "dim"), " ", text)
        yield from [Text()] * (count - len(events))

    def _help(self) -> Text:
        if self._typing:
            return Text("type a part of a name; Enter ends, Esc clears", "reverse")
        return Text(
            "q quit  Tab agents  s sort  r reverse  f filter  / find  ↑↓ scroll  space pause",
            "reverse",
        )


def _proxy(row: Row) -> list[str | Cell]:
    style = "green" if row["lease"] is not None else "yellow" if row["desired"] else "dim"
    return [
        Cell(format_value(row["name"]), style),
        format_value(row["group"]),
        format_value(row["generation"]),
        Cell(describe_desired(row), "" if row["desired"] else "dim"),
        format_value(row["lease"]),
        format_value(row["session"]),
        format_value(row["pid"]),
        row["agent"],
    ]


def _agent(row: Row) -> list[str | Cell]:
    return [
        str(row["session"]),
        format_value(row["pid"] or None),
        row["agent"],
        str(row["leases"]),
        Cell(str(row["inflight"]), "yellow" if row["inflight"] else ""),
        Cell(str(row["waiting"]), "bold" if row["waiting"] else ""),
        str(row["gossip"]),
        str(row["requests"]),
    ]


def _who(row: Row | None) -> str:
    return "" if row is None else escape(row["name"] or row["command"])


def _rate(number: float) -> str:
    return f"{number:.0f}" if number >= 10 or not number else f"{number:.1f}"


def _bar(status: dict[str, Any], width: int) -> Text:
    """Return how many of the wanted connections there are, as a bar."""
    target, claimed = status["target"], status["claimed_desired"]
    words = (
        f" {claimed} of {target} wanted · {status['desired']} desired, {status['tracked']} tracked"
    )
    room = max(10, width - len(words))
    full = room * min(claimed, target) // target if target else room
    flying = min(room - full, -(-room * status["inflight"] // target)) if target else 0
    return Text.assemble(
        ("█" * full, "green" if target else "dim"),
        ("▒" * flying, "yellow"),
        ("░" * (room - full - flying), "dim"),
        words,
    )


def _rule(title: str, width: int) -> Text:
    return Text.assemble(("─ ", "dim"), title, (" ".ljust(width - len(title) - 2, "─"), "dim"))


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    line.no_wrap = True
    return line
