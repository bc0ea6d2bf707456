"""How events read: one line each, in words. Shared by `watch`, `log`, `top` and `explain`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from trackd_client.cli.output.render import (
    Cell,
    Page,
    format_count,
    format_time,
    format_value,
)
from trackd_client.cli.text import escape
from trackd_client.core.event import GAP, SNAPSHOT, Event

#: Every kind, and how it is coloured.
STYLES: Final = {
    "session_opened": "cyan",
    "session_ended": "cyan",
    "lease_granted": "",
    "lease_released": "",
    "proxy_claimed": "green",
    "lease_offered": "cyan",
    "lease_renamed": "cyan",
    "proxy_tracked": "blue",
    "proxy_changed": "blue",
    "proxy_marked": "blue",
    "proxy_addressed": "blue",
    "proxy_expired": "yellow",
    "proxy_forgotten": "yellow",
    "connection_count": "magenta",
    "lease_stale": "yellow",
    "dial_failed": "yellow",
    "dials_paused": "yellow",
    "dials_resumed": "green",
    "daemon_started": "bold",
    SNAPSHOT: "bold",
    GAP: "bold red",
}
#: Why a session ended or a lease was released, as people say it.
_CAUSES: Final = {
    "asked": "released by its agent",
    "given_up": "its agent stopped waiting",
    "closed": "released by its agent",
    "process_exited": "its process exited",
    "no_heartbeat": "no heartbeat arrived",
    "claim_timeout": "it did not claim in time",
    "stale": "its tunnel gave no sign of life",
    "admin": "by an admin",
    "handed_over": "its tunnel is replaced",
    "host_lost": "its host was lost",
}
_REASONS: Final = {
    "bootstrap": "nothing was claimed or nothing tracked",
    "need": "a tunnel was missing",
    "adopt": "for a tunnel that was open",
}

#: Why a dial failed, as people say it.
FAILURES: Final = {
    "refused": "was refused",
    "timeout": "timed out",
    "tls": "failed in TLS",
    "rate": "met a rate limit",
    "auth": "was not let in",
    "other": "failed",
}
_RESUMED: Final = {
    "held": "a dial reached a claimed proxy",
    "stayed_up": "a tunnel stayed up",
    "asked": "by an admin",
    "session_ended": "the session ended",
}

Fields = Mapping[str, Any]


class People:
    """Who the sessions are, as far as events and snapshots say."""

    def __init__(self, sessions: Iterable[Fields] = ()) -> None:
        self._known = {row["session"]: row for row in sessions}

    def note(self, event: Event) -> None:
        """Take the sessions that an event names."""
        if event.kind == "session_opened":
            self._known[event.fields["session"]] = event.fields
        elif event.kind == SNAPSHOT:
            self._known = {row["session"]: row for row in event.fields["sessions"]}

    def describe(self, number: int | None) -> str:
        """Return a session in words: its number, and who it is."""
        if number is None:
            return "an unknown session"
        row = self._known.get(number)
        return f"session {number}" if row is None else f"session {number} ({describe_agent(row)})"


def describe_agent(row: Fields) -> str:
    """Return the agent of a session in words."""
    words = [f"pid {row['pid']}"] if row["pid"] else []
    words += [escape(text) for text in (row["name"] or row.get("command"),) if text]
    return (" ".join(words) or "unknown") + name_host(row.get("host", ""))


def name_host(host: str) -> str:
    """Return the words that follow a process or a user of another host; none without a host."""
    return f" on {escape(host)}" if host else ""


def format_line(event: Event, people: People, page: Page) -> str:
    """Return an event as one line: when, its revision, and what happened.

    On a terminal the day is left out when it is today, and a long line is folded and indented.
    """
    when = format_time(event.wall, today=page.terminal)
    begin = f"{when} {event.revision:>7}  "
    style = STYLES.get(event.kind, "")
    folded = page.folded(format_event(event, people), used=len(begin))
    said = f"\n{' ' * len(begin)}".join(page.paint(text, style) for text in folded)
    return page.paint(begin, "dim") + said


def format_event(event: Event, people: People) -> str:
    """Return in words what happened."""
    describe = _SENTENCES.get(event.kind)
    if describe is None:  # of a newer daemon
        fields = " ".join(
            f"{escape(name)}={format_value(value)}" for name, value in event.fields.items()
        )
        return f"{escape(event.kind)} {fields}"
    return describe(event.fields, people)


def format_cell(event: Event, people: People) -> Cell:
    """Return what happened, and its colour."""
    return Cell(format_event(event, people), STYLES.get(event.kind, ""))


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as scripts get it."""
    return {**event._asdict(), "fields": dict(event.fields)}


def concerns(event: Event, name: str) -> bool:
    """Tell whether an event is about a proxy."""
    return event.fields.get("name") == name and not event.kind.startswith("session_")


def _name_admin(fields: Fields) -> str:
    if "by_uid" not in fields:
        return ""
    return (
        f" (uid {fields['by_uid']}, pid {fields['by_pid']}{name_host(fields.get('by_host', ''))})"
    )


def _name_cause(fields: Fields, key: str) -> str:
    cause = fields[key]
    return f"{_CAUSES.get(cause, format_value(cause))}{_name_admin(fields)}"


def _name_generation(fields: Fields, prefix: str = "") -> str:
    group = fields[f"{prefix}group"]
    where = "" if group == "" else f" of group {format_value(group)}"
    return f"generation {fields[f'{prefix}generation']}{where}"


def _describe_opened(fields: Fields, _people: People) -> str:
    return f"session {fields['session']} opened by {describe_agent(fields)}, uid {fields['uid']}"


def _describe_ended(fields: Fields, _people: People) -> str:
    why = _name_cause(fields, "reason")
    return f"session {fields['session']} of {describe_agent(fields)} ended: {why}"


def _describe_granted(fields: Fields, people: People) -> str:
    reason = _REASONS.get(fields["reason"], format_value(fields["reason"]))
    return f"lease {fields['lease']} granted to {people.describe(fields['session'])}: {reason}"


def _describe_released(fields: Fields, _people: People) -> str:
    name = fields["name"]
    what = "which had claimed nothing" if name is None else f"which held {format_value(name)}"
    return f"lease {fields['lease']} released, {what}: {_name_cause(fields, 'cause')}"


def _describe_claimed(fields: Fields, people: People) -> str:
    lease = f"lease {fields['lease']}"
    return (
        f"{format_value(fields['name'])} claimed by {lease} of {people.describe(fields['session'])}"
    )


def _describe_offered(fields: Fields, people: People) -> str:
    lease = f"lease {fields['lease']} of {people.describe(fields['session'])}"
    return f"{format_value(fields['name'])} is offered to other agents by {lease}"


def _describe_renamed(fields: Fields, people: People) -> str:
    before, name = format_value(fields["before"]), format_value(fields["name"])
    lease = f"lease {fields['lease']} of {people.describe(fields['session'])}"
    return f"{before}, which {lease} holds, is now called {name}: gossip names it so"


def _describe_tracked(fields: Fields, people: People) -> str:
    speaker = people.describe(fields["session"])
    return f"{format_value(fields['name'])} is tracked, {_name_generation(fields)}, says {speaker}"


def _describe_changed(fields: Fields, people: People) -> str:
    change = f"{_name_generation(fields, 'old_')} became {_name_generation(fields)}"
    name = format_value(fields["name"])
    return f"{name}: {change}, says {people.describe(fields['session'])}"


def _describe_marked(fields: Fields, people: People) -> str:
    word = "is terminating" if fields["terminating"] else "is not terminating any more"
    by = fields["session"]
    speaker = "nobody has said it again" if by is None else f"says {people.describe(by)}"
    return f"{format_value(fields['name'])} {word}, {speaker}"


def _describe_addressed(fields: Fields, people: People) -> str:
    name, address = format_value(fields["name"]), fields["address"]
    word = "has no address any more" if address is None else f"can be dialled at {address}"
    by = fields["session"]
    return f"{name} {word}" if by is None else f"{name} {word}, says {people.describe(by)}"


def _describe_expired(fields: Fields, _people: People) -> str:
    name = format_value(fields["name"])
    return f"{name} expired, {_name_generation(fields)}: gossip stopped naming it"


def _describe_forgotten(fields: Fields, _people: People) -> str:
    name = format_value(fields["name"])
    return f"{name} forgotten, {_name_generation(fields)}: by an admin{_name_admin(fields)}"


def _describe_count(fields: Fields, _people: People) -> str:
    return f"connection count set to {fields['count']}, was {fields['before']}{_name_admin(fields)}"


def _describe_stale(fields: Fields, people: People) -> str:
    name, by = fields["name"], people.describe(fields["session"])
    tunnel = "" if name is None else f", which holds {format_value(name)},"
    return f"lease {fields['lease']} of {by}{tunnel} is stale: it reports no sign of life any more"


def _describe_failed(fields: Fields, people: People) -> str:
    dial = f"the dial with lease {fields['lease']} of {people.describe(fields['session'])}"
    return f"{dial} {describe_failure(fields)}"


def describe_failure(fields: Fields) -> str:
    """Return in words why a dial failed: the end of a sentence."""
    asked = fields.get("retry_after")
    wait = "" if asked is None else f", and should wait for {asked:g} s"
    return f"{FAILURES.get(fields['reason'], format_value(fields['reason']))}{wait}"


def _name_scope(fields: Fields, people: People) -> str:
    return "the host" if fields["scope"] == "host" else people.describe(fields["session"])


def _describe_paused(fields: Fields, people: People) -> str:
    failed = format_count(fields["failures"], "failed dial")
    by = f" of {people.describe(fields['session'])}" if fields["scope"] == "host" else ""
    last = f"the last one{by} {describe_failure(fields)}"
    return f"dials of {_name_scope(fields, people)} pause after {failed}: {last}"


def _describe_resumed(fields: Fields, people: People) -> str:
    why = _RESUMED.get(fields["why"], format_value(fields["why"]))
    return f"dials of {_name_scope(fields, people)} go on: {why}{_name_admin(fields)}"


def _describe_started(fields: Fields, _people: People) -> str:
    server = format_value(fields["server"])
    return f"daemon {server} started, pid {fields['pid']}, epoch {fields['epoch']}"


def _describe_snapshot(fields: Fields, _people: People) -> str:
    proxies = format_count(len(fields["proxies"]), "proxy", "proxies")
    leases = format_count(len(fields["leases"]), "lease")
    return f"snapshot: {proxies}, {leases}, {format_count(len(fields['sessions']), 'session')}"


def _describe_gap(fields: Fields, _people: People) -> str:
    after, newest = fields["after"], fields["newest"]
    if newest < after:
        return f"GAP: the daemon has lost its state; it is at revision {newest}, after {after}"
    return f"GAP: the events after {after} up to {newest} are lost"


_SENTENCES: Final[Mapping[str, Callable[[Fields, People], str]]] = {
    "session_opened": _describe_opened,
    "session_ended": _describe_ended,
    "lease_granted": _describe_granted,
    "lease_released": _describe_released,
    "proxy_claimed": _describe_claimed,
    "proxy_tracked": _describe_tracked,
    "proxy_changed": _describe_changed,
    "lease_offered": _describe_offered,
    "lease_renamed": _describe_renamed,
    "proxy_marked": _describe_marked,
    "proxy_addressed": _describe_addressed,
    "proxy_expired": _describe_expired,
    "proxy_forgotten": _describe_forgotten,
    "connection_count": _describe_count,
    "lease_stale": _describe_stale,
    "dial_failed": _describe_failed,
    "dials_paused": _describe_paused,
    "dials_resumed": _describe_resumed,
    "daemon_started": _describe_started,
    SNAPSHOT: _describe_snapshot,
    GAP: _describe_gap,
}
