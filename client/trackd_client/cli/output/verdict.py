"""The sentences that say how things stand: the headline, the decision on a lease, one proxy.

They stand in this module only; `status`, `top`, `explain` and `proxies` print them.
"""

from __future__ import annotations

from typing import Any, Final

from trackd_client import Tracker
from trackd_client.cli.output.event_lines import describe_failure, name_host
from trackd_client.cli.output.listing import seconds_until
from trackd_client.cli.output.render import Cell, format_count, format_duration, format_value
from trackd_client.cli.text import escape
from trackd_client.core.coverage import count_missing
from trackd_client.core.mirror import Row

#: Seconds after a dial began in which agents count as dialling: they pause between dials.
DIALLING_SECONDS: Final = 10.0
#: Groups from which on it is said which of them miss tunnels, and how many of these are named.
_SOME_GROUPS: Final = 2
_GAPS: Final = 10
#: Last events among which the beginning of a dial is looked for.
_EVENTS: Final = 200


def seconds_since_dial(tracker: Tracker, revision: int) -> float | None:
    """Return how long ago a lease was granted last; None when it is too long to count.

    One instant says little: most dials are over within milliseconds.
    """
    for event in reversed(tracker.log(after=max(0, revision - _EVENTS))["events"]):
        if event.kind == "lease_granted" and event.fields.get("reason") != "adopt":
            left = seconds_until(tracker, event.time)
            ago = 0.0 if left is None else max(0.0, -left)
            return ago if ago <= DIALLING_SECONDS else None
    return None


def is_covered(status: dict[str, Any], *, allow_none: bool = False) -> bool:
    """Return whether every wanted connection is there, and changes can be stored.

    Args:
        status: the daemon's reply.
        allow_none: whether that is so when none is wanted.
    """
    some = bool(status["tracked"] or allow_none)
    return bool(status["store"] != "failing" and some and not count_missing(status))


def describe_coverage(status: dict[str, Any], full_at: float | None) -> str:
    """Return in words when nothing was missing last, and how much was since the daemon started.

    Args:
        status: the daemon's reply.
        full_at: seconds until the former, so 0 or less; None: it was not yet.

    Returns:
        The words; "" when no connection was wanted, or the daemon is too old to say it.
    """
    missed = status.get("missing_seconds")
    if missed is None or not (status["target"] or missed):
        return ""
    if is_covered(status):
        last = "full now"
    elif full_at is None:
        last = "not full since the daemon started"
    else:
        last = f"last full {format_duration(max(0.0, -full_at))} ago"
    return f"{last}; all tunnels together were missing for {format_duration(missed)}"


def describe_gaps(status: dict[str, Any]) -> str:
    """Return in words which groups miss tunnels now, and for how long they have in all.

    Returns:
        The words, those that miss most first; "" when there is one group, or the daemon is too old
        to say it.
    """
    if status["group_count"] < _SOME_GROUPS:
        return ""
    found = [
        f"{_name_gap(gap['group'])} {gap['missing']} ({format_duration(gap['missing_seconds'])})"
        for gap in status.get("missing_by_group", ())
        if gap["missing"]
    ]
    return f"missing by group: {', '.join(found[:_GAPS])}" if found else ""


def _name_gap(group: str | None) -> str:
    return "all others" if group is None else format_value(group)


def judge(status: dict[str, Any], since_dial: float | None = None) -> Cell:
    """Return the headline of a status: one sentence, and its colour.

    Args:
        status: the daemon's reply.
        since_dial: as `seconds_since_dial` returns it.
    """
    missing = count_missing(status)
    if status["store"] == "failing":
        return Cell("changes cannot be stored; agents are refused until they can be", "red")
    if not status["tracked"]:
        return Cell("no proxy is known yet; the first dial brings gossip", "yellow")
    if missing <= 0:
        return Cell(_praise(status), "green")
    lacking = f"{missing} of {_name_target(status)} {'has' if missing == 1 else 'have'} no tunnel"
    if dials := status["inflight"]:
        agents = "1 agent is" if dials == 1 else f"{dials} agents are"
        return Cell(f"{lacking}; {agents} dialling", "yellow")
    if since_dial is not None:
        return Cell(f"{lacking}; the last dial began {format_duration(since_dial)} ago", "yellow")
    return Cell(f"{lacking}; no agent is dialling", "yellow")


def _praise(status: dict[str, Any]) -> str:
    target = status["target"]
    if target < status["desired"]:
        have = "has" if target == 1 else "have"
        return f"{target} of {status['desired']} proxies {have} a tunnel, as many as wanted"
    return "the only proxy has a tunnel" if target == 1 else f"all {target} proxies have a tunnel"


def _name_target(status: dict[str, Any]) -> str:
    """Return what the target counts: proxies, or connections when fewer than that are wanted."""
    if status["target"] < status["desired"]:
        return format_count(status["target"], "wanted connection")
    return format_count(status["target"], "proxy", "proxies")


def decide(explanation: dict[str, Any]) -> Cell:
    """Return in one sentence whether a lease would be granted now, and why."""
    match explanation["reason"]:
        case "bootstrap":
            return Cell("A lease now: one agent has to dial first.", "green")
        case "need":
            missing = count_missing(explanation)
            if not missing and explanation.get("offered"):
                return Cell("A lease now: an agent offers a tunnel to be replaced.", "green")
            if not missing:
                return Cell("A lease now: a proxy with a tunnel is terminating.", "green")
            verb = "has" if missing == 1 else "have"
            proxies = format_count(missing, "proxy", "proxies")
            return Cell(f"A lease now: {proxies} {verb} no tunnel.", "green")
        case "satisfied" if explanation["target"] > explanation["claimed_desired"]:
            return Cell("No lease now: an agent is dialling for every missing tunnel.", "yellow")
        case "satisfied":
            return Cell("No lease now: all proxies are covered.", "green")
        case "backoff":
            wait = explanation.get("retry_after")
            when = "" if wait is None else f"; the next one may begin in {wait:.1f} s"
            return Cell(f"No lease now: dials pause after failures{when}.", "yellow")
        case "waiters":
            waiting = explanation["waiting"]
            verb = "is" if waiting == 1 else "are"
            queued = f"{format_count(waiting, 'request')} {verb} queued"
            if explanation["target"] > explanation["claimed_desired"] + explanation["inflight"]:
                return Cell(f"No lease now: {queued} and served first.", "yellow")
            return Cell(f"No lease now: all proxies are covered; {queued}.", "yellow")
        case "budget":
            wait = explanation.get("retry_after")
            when = "" if wait is None else f"; the next dial may begin in {wait:.1f} s"
            return Cell(f"No lease now: dial_rate limits how often agents dial{when}.", "yellow")
        case "store":
            return Cell("No lease now: changes cannot be stored; see trackctl status.", "red")
        case other:  # of a newer daemon
            return Cell(f"The daemon says: {format_value(other)}.", "yellow")


def describe_proxy(explanation: dict[str, Any]) -> Cell:
    """Return in words whether a proxy has a tunnel, and why not."""
    proxy = explanation["proxy"]
    match explanation["why"]:
        case "claimed" if proxy["desired"]:
            return Cell("desired, and claimed", "green")
        case "claimed" if proxy["tracked"]:
            if proxy["generation"] < proxy["largest"]:
                newer = f"generation {proxy['largest']} is newer"
                return Cell(f"claimed, but not desired: {newer}", "yellow")
            return Cell("claimed, but not desired: it is terminating", "yellow")
        case "claimed":
            return Cell("claimed, but not tracked", "yellow")
        case "missing":
            return Cell("desired, but no lease holds it", "red")
        case "old_generation":
            return Cell(f"not desired: generation {proxy['largest']} of its group is newer", "dim")
        case "terminating":
            return Cell("not desired: it is terminating", "dim")
        case "forgotten":
            return Cell("forgotten by an admin: old gossip does not bring it back", "yellow")
        case "unknown":
            return Cell("not known: neither gossip nor a claim has named it", "yellow")
        case other:  # of a newer daemon
            return Cell(format_value(other))


def describe_pause(pause: dict[str, Any], left: float | None) -> str:
    """Return in words a pause after failed dials.

    Args:
        pause: of the daemon's reply.
        left: seconds until it ends, or None when that is unknown.
    """
    agent = f" {escape(pause['agent'])}" if pause["agent"] else ""
    who = f"pid {pause['pid']}{agent}" if pause["pid"] else f"session {pause['session']}{agent}"
    who += name_host(pause.get("host", ""))
    over = "one dial at a time may try" if left is None or left <= 0 else f"{left:.1f} s more"
    failed = format_count(pause["failures"], "failed dial")
    return f"{over}, after {failed}; the last one {describe_failure(pause)}, says {who}"


def describe_desired(row: Row) -> str:
    """Return whether a proxy is desired, or why not."""
    if row["desired"]:
        return "yes"
    if row["tracked"] and row["generation"] < row["largest"]:
        return f"no, {format_value(row['largest'])} is newer"
    if row["tracked"]:
        return "no, terminating"
    return "no, not tracked"
