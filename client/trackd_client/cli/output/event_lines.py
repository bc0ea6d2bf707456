"""How events read: one line each, in words. Shared by `watch`, `log`, `top` and `explain`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from trackd_client.cli.output.render import Cell, Page, moment, plain, plural, shown
from trackd_client.core.event import GAP, SNAPSHOT, Event

#: Every kind, and how it is coloured.
STYLES: Final = {
    "session_opened": "cyan",
    "session_ended": "cyan",
    "lease_granted": "",
    "lease_released": "",
    "proxy_claimed": "green",
    "proxy_tracked": "blue",
    "proxy_changed": "blue",
    "proxy_expired": "yellow",
    "proxy_forgotten": "yellow",
    "connection_count": "magenta",
    "daemon_started": "bold",
    SNAPSHOT: "bold",
    GAP: "bold red",
}
#: Why a session ended or a lease was released, as people say it.
_CAUSES: Final = {
    "asked": "its agent released it",
    "given_up": "its agent had given up waiting",
    "closed": "its agent closed",
    "process_exited": "its process exited",
    "no_heartbeat": "no heartbeat came",
    "claim_timeout": "it did not claim in time",
    "admin": "by an admin",
}
_REASONS: Final = {
    "bootstrap": "nothing was claimed or nothing tracked",
    "need": "a tunnel was missing",
    "adopt": "for a tunnel that was open",
}

Fields = Mapping[str, Any]


class People:
    """Who the sessions are, as far as events and snapshots have told."""

    def __init__(self, sessions: Iterable[Fields] = ()) -> None:
        self._known = {row["session"]: row for row in sessions}

    def note(self, event: Event) -> None:
        """Learn what an event tells of sessions."""
        if event.kind == "session_opened":
            self._known[event.fields["session"]] = event.fields
        elif event.kind == SNAPSHOT:
            self._known = {row["session"]: row for row in event.fields["sessions"]}

    def who(self, number: int | None) -> str:
        """Return a session in words: its number, and who it is."""
        if number is None:
            return "an unknown session"
        row = self._known.get(number)
        return f"session {number}" if row is None else f"session {number} ({who(row)})"


def who(row: Fields) -> str:
    """Return the agent of a session in words."""
    words = [f"pid {row['pid']}"] if row["pid"] else []
    words += [plain(text) for text in (row["name"] or row.get("command"),) if text]
    return " ".join(words) or "unknown"


def line(event: Event, people: People, page: Page) -> str:
    """Return an event as one line: when, its revision, and what happened.

    On a terminal the day is left out when it is today, and a long line is folded and indented.
    """
    when = moment(event.wall, today=page.terminal)
    begin = f"{when} {event.revision:>7}  "
    style = STYLES.get(event.kind, "")
    folded = page.folded(sentence(event, people), used=len(begin))
    said = f"\n{' ' * len(begin)}".join(page.paint(text, style) for text in folded)
    return page.paint(begin, "dim") + said


def sentence(event: Event, people: People) -> str:
    """Return in words what happened."""
    tell = _SENTENCES.get(event.kind)
    if tell is None:  # of a newer daemon
        told = " ".join(f"{name}={shown(value)}" for name, value in event.fields.items())
        return f"{event.kind} {told}"
    return tell(event.fields, people)


def cell(event: Event, people: People) -> Cell:
    """Return what happened, and its colour."""
    return Cell(sentence(event, people), STYLES.get(event.kind, ""))


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as scripts get it."""
    return {**event._asdict(), "fields": dict(event.fields)}


def concerns(event: Event, name: str) -> bool:
    """Tell whether an event is about a proxy."""
    return event.fields.get("name") == name and not event.kind.startswith("session_")


def _admin(fields: Fields) -> str:
    if "by_uid" not in fields:
        return ""
    return f" (uid {fields['by_uid']}, pid {fields['by_pid']})"


def _cause(fields: Fields, key: str) -> str:
    cause = fields[key]
    return f"{_CAUSES.get(cause, shown(cause))}{_admin(fields)}"


def _of(fields: Fields, prefix: str = "") -> str:
    group = fields[f"{prefix}group"]
    where = "" if group == "" else f" of group {shown(group)}"
    return f"generation {fields[f'{prefix}generation']}{where}"


def _opened(fields: Fields, _people: People) -> str:
    return f"session {fields['session']} opened by {who(fields)}, uid {fields['uid']}"


def _ended(fields: Fields, _people: People) -> str:
    return f"session {fields['session']} of {who(fields)} ended: {_cause(fields, 'reason')}"


def _granted(fields: Fields, people: People) -> str:
    reason = _REASONS.get(fields["reason"], shown(fields["reason"]))
    return f"lease {fields['lease']} granted to {people.who(fields['session'])}: {reason}"


def _released(fields: Fields, _people: People) -> str:
    name = fields["name"]
    what = "which had claimed nothing" if name is None else f"which held {shown(name)}"
    return f"lease {fields['lease']} released, {what}: {_cause(fields, 'cause')}"


def _claimed(fields: Fields, people: People) -> str:
    lease = f"lease {fields['lease']}"
    return f"{shown(fields['name'])} claimed by {lease} of {people.who(fields['session'])}"


def _tracked(fields: Fields, people: People) -> str:
    speaker = people.who(fields["session"])
    return f"{shown(fields['name'])} is there, {_of(fields)}, says {speaker}"


def _changed(fields: Fields, people: People) -> str:
    change = f"{_of(fields, 'old_')} became {_of(fields)}"
    return f"{shown(fields['name'])}: {change}, says {people.who(fields['session'])}"


def _expired(fields: Fields, _people: People) -> str:
    return f"{shown(fields['name'])} expired, {_of(fields)}: nobody mentioned it any more"


def _forgotten(fields: Fields, _people: People) -> str:
    return f"{shown(fields['name'])} forgotten, {_of(fields)}: by an admin{_admin(fields)}"


def _count(fields: Fields, _people: People) -> str:
    return f"connection count set to {fields['count']}, was {fields['before']}{_admin(fields)}"


def _started(fields: Fields, _people: People) -> str:
    return f"daemon {shown(fields['server'])} started, pid {fields['pid']}, epoch {fields['epoch']}"


def _snapshot(fields: Fields, _people: People) -> str:
    proxies = plural(len(fields["proxies"]), "proxy", "proxies")
    leases = plural(len(fields["leases"]), "lease")
    return f"snapshot: {proxies}, {leases}, {plural(len(fields['sessions']), 'session')}"


def _gap(fields: Fields, _people: People) -> str:
    after, newest = fields["after"], fields["newest"]
    if newest < after:
        return f"GAP: the daemon has lost its state; {after} was told last, now it is at {newest}"
    return f"GAP: the events after {after} up to {newest} are lost"


_SENTENCES: Final[Mapping[str, Callable[[Fields, People], str]]] = {
    "session_opened": _opened,
    "session_ended": _ended,
    "lease_granted": _granted,
    "lease_released": _released,
    "proxy_claimed": _claimed,
    "proxy_tracked": _tracked,
    "proxy_changed": _changed,
    "proxy_expired": _expired,
    "proxy_forgotten": _forgotten,
    "connection_count": _count,
    "daemon_started": _started,
    SNAPSHOT: _snapshot,
    GAP: _gap,
}
