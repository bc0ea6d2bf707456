"""`trackctl explain`: why a lease would be granted or refused now; or all about one proxy.

The sentences are for a person on call, who has not read the rules. The numbers are those of the
rules, every one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common, completions
from trackd_client.cli.output import event_lines, listing
from trackd_client.cli.output.event_lines import FAILURES, People, name_host
from trackd_client.cli.output.gaps import BEGINNINGS
from trackd_client.cli.output.render import (
    Cell,
    Page,
    format_count,
    format_duration,
    format_names,
    format_remaining,
    format_rtt,
    format_value,
)
from trackd_client.cli.output.verdict import (
    decide,
    describe_pause,
    describe_proxy,
    seconds_since_dial,
)
from trackd_client.cli.text import escape
from trackd_client.core.coverage import count_missing
from trackd_client.core.event import Event
from trackd_client.results import ProxyExplanation, ProxyTarget, Source

_EPILOG = """\b
Examples:
  trackctl explain                 # why does no agent dial?
  trackctl explain proxy-7         # what about this one?
  trackctl explain proxy-7.example.com --json | jq .why

\b
JSON: the fields of the operation explain in docs/protocol.md; without PROXY
also "sentences", what people get; with PROXY also "events", its last ones,
each {"revision", "time", "wall", "kind", "fields"}.
"""
#: Last events of a proxy that are shown.
_EVENTS = 10
#: A proxy that more than this share of all dials reached is named, when chance explains it not.
_STICKY = 0.5
#: What is less probable than this is not chance; two tests of it are made.
_RARE = 0.002
#: How strongly each success speaks for the balancer; see `is_suspicious`.
_RATES = (0.25, 0.5, 1.0, 2.0)


@click.command(epilog=_EPILOG)
@click.argument("proxy", required=False, shell_complete=completions.proxies)
@common.json_option("Print JSON.")
@click.pass_obj
def explain(options: common.Options, *, proxy: str | None, as_json: bool) -> None:
    """Tell why no agent dials, or all about one PROXY.

    PROXY is a name from gossip, or what a proxy presents: its principals.
    """
    with common.report_errors(), options.connect() as tracker:
        if proxy is None:
            _explain_leases(tracker, as_json=as_json)
        else:
            _explain_proxy(tracker, proxy, as_json=as_json)


def _explain_leases(tracker: Tracker, *, as_json: bool) -> None:
    reply = tracker.explain()
    ago = None
    if count_missing(reply):
        ago = seconds_since_dial(tracker, tracker.status().revision)
    if as_json:
        texts = [sentence.text for sentence in write_sentences(reply, ago)]
        common.print_json({**reply, "sentences": texts})
    else:
        show(reply, ago, Page())


def _explain_proxy(tracker: Tracker, proxy: str, *, as_json: bool) -> None:
    reply = tracker.explain(proxy)
    events = [
        event
        for event in tracker.log(older=True)["events"]
        if event_lines.concerns(event, reply.meant or proxy)
    ][-_EVENTS:]
    if as_json:
        common.print_json({**reply, "events": [event_lines.to_json(each) for each in events]})
    else:
        show_proxy(reply, events, tracker, Page())


# -- the whole ------------------------------------------------------------------------------


def show(reply: dict[str, Any], since_dial: float | None, page: Page) -> None:
    """Print for people why a lease would be granted or refused."""
    first, *more = write_sentences(reply, since_dial)
    page.say(first.text, first.style)
    page.line()
    page.pairs(list_numbers(reply))
    if more:
        page.line()
    for sentence in more:
        page.say(sentence.text, sentence.style)


def list_numbers(reply: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return every number of the rule, with what it is."""
    count = reply["connection_count"]
    mode = f"at most {count}: proxy peering" if count > 0 else "one to every desired proxy"
    yes = {True: "yes", False: "no"}
    yield "tracked", f"{reply['tracked']:>6}  proxies that gossip names"
    yield "desired", f"{reply['desired']:>6}  of them of their group's newest generation"
    yield "connection count", f"{count:>6}  {mode}"
    yield "target", f"{reply['target']:>6}  wanted connections"
    yield "claimed", f"{reply['claimed']:>6}  proxies that leases hold, desired or not"
    yield "claimed, desired", f"{reply['claimed_desired']:>6}  of them desired"
    if terminating := reply.get("claimed_terminating"):
        yield "terminating", f"{terminating:>6}  of them about to go, and so not desired"
    if offered := reply.get("offered"):
        yield "offered", f"{offered:>6}  of the claimed and desired: to be replaced"
    yield "in flight", f"{reply['inflight']:>6}  leases whose agents are dialling"
    yield "waiting", f"{reply['waiting']:>6}  queued requests for a lease"
    yield "missing", f"{reply['missing_count']:>6}  desired proxies that no lease holds"
    less = f" - {offered} offered" if offered else ""
    sum_ = f"{reply['claimed_desired']} claimed and desired{less} + {reply['inflight']} in flight"
    yield "need", f"{yes[reply['need']]:>6}  is target {reply['target']} > {sum_}?"
    first_dial = "needs 0 in flight, and 0 claimed or 0 tracked"
    yield "first-dial rule", f"{yes[reply['bootstrap']]:>6}  ({first_dial})"


def write_sentences(reply: dict[str, Any], since_dial: float | None = None) -> list[Cell]:
    """Return the sentences: first the decision, then what may be wrong.

    Args:
        reply: of the daemon.
        since_dial: as `seconds_since_dial` returns it.
    """
    found = [
        decide(reply),
        *_explain_pause(reply),
        *_explain_missing(reply, since_dial),
        *_explain_recent(reply),
        *_explain_outcomes(reply),
    ]
    return [sentence for sentence in found if sentence.text]


def _explain_pause(reply: dict[str, Any]) -> Iterator[Cell]:
    pause = reply.get("pause")
    if pause is not None:
        left = reply.get("retry_after") if reply["reason"] == "backoff" else None
        yield Cell(f"The pause of this host: {describe_pause(pause, left)}.", "yellow")


def _explain_outcomes(reply: dict[str, Any]) -> Iterator[Cell]:
    """Say how the last dials ended, the most frequent failure first."""
    outcomes = reply.get("outcomes")
    if outcomes is None:
        return
    ended = sorted(outcomes["ended"].items(), key=lambda each: (-each[1], each[0]))
    failed = [f"{number} {FAILURES.get(how, how)}" for how, number in ended if how in FAILURES]
    if failed:
        dials = format_count(outcomes["dials"], "dial")
        yield Cell(f"Of the last {dials}, {', '.join(failed)}.", "yellow")


def _explain_missing(reply: dict[str, Any], since_dial: float | None) -> Iterator[Cell]:
    missing, total = reply["missing"], reply["missing_count"]
    if not missing:
        return
    yield Cell(f"Without a tunnel: {format_names(missing, total)}.")
    wanted = reply["target"] - reply["claimed_desired"]
    if wanted <= 0:
        yield Cell("This is intended: the connection count allows no further connection.")
    elif reply["inflight"] >= wanted:
        yield Cell(
            f"{format_count(reply['inflight'], 'lease')} in flight may reach them; when none does"
            " for long, see trackctl leases --in-flight: who holds them, and since when.",
            "yellow",
        )
    elif reply["reason"] == "need" and not reply["waiting"] and since_dial is not None:
        ago = format_duration(since_dial)
        yield Cell(f"The last dial began {ago} ago; agents pause after lost claims.")
    elif reply["reason"] == "need" and not reply["waiting"]:
        yield Cell(
            "No agent asks for a lease at this moment: agents pause after lost claims, or none"
            " runs; see trackctl sessions.",
            "yellow",
        )


def _explain_recent(reply: dict[str, Any]) -> Iterator[Cell]:
    """Say how the last claims went, and whether chance explains it."""
    recent = reply["recent"]
    duplicates = recent["duplicates"]
    claims = recent["claims"] + duplicates
    if not duplicates:
        return
    text = (
        f"Of the last {format_count(claims, 'claim')}, {duplicates} reached a proxy that was held"
    )
    met = [f"{format_value(name)} ({times})" for name, times in recent["met"]]
    yield Cell(f"{text}: {', '.join(met)}.")
    if not count_missing(reply):
        return
    hint = reply.get("hint")
    if hint is not None:
        yield _explain_hint(hint)
        return
    if not is_suspicious(recent):
        return
    often, times = recent["met"][0]
    if times > _STICKY * claims:
        yield Cell(
            f"The load balancer sends most dials to {format_value(often)}: look there for affinity"
            " by source address, and for proxies that it does not know.",
            "yellow",
        )
    else:
        yield Cell(
            "Dials reach missing proxies less often than chance explains: look for proxies that"
            " the load balancer does not know, cannot reach, or is draining.",
            "yellow",
        )


def _explain_hint(hint: dict[str, Any]) -> Cell:
    """Say what the last dials of the host show of the load balancer, as the daemon judges them."""
    row = f"{hint['in_a_row']} dials in a row met a held proxy, the last ones"
    if hint["balancer"] != "sticky":
        return Cell(
            f"{row} nearly all of these: look for missing proxies that are down, or that the load"
            " balancer does not know, cannot reach, or is draining.",
            "yellow",
        )
    names = format_names(hint["met"], hint["met_count"])
    turns = ", a round robin that keeps step with the dials" if hint["met_count"] > 1 else ""
    return Cell(
        f"The load balancer is sticky: {row} only {names}. Look for affinity by source address"
        f"{turns}, and for proxies that it does not know.",
        "yellow",
    )


def is_suspicious(recent: dict[str, Any]) -> bool:
    """Return whether claims succeeded less often than chance explains.

    Through a fair load balancer a dial reaches a missing proxy with the probability that is the
    share of the missing proxies at that time. With S the sum of these probabilities and W the
    successes, exp(S * (1 - exp(-r)) - r * W) is on average 1 at most, for every r > 0, whenever
    one looks (a supermartingale). So its mean over some r is 1 / _RARE at most once in 1 / _RARE
    fair histories. The same, with W = 0, holds for S since the last success.

    A daemon that does not send S is never suspicious.
    """
    expected, unlucky = recent.get("expected"), recent.get("expected_since_success")
    if expected is None or unlucky is None:
        return False
    evidence = [math.exp(expected * -math.expm1(-r) - r * recent["claims"]) for r in _RATES]
    return math.fsum(evidence) / len(evidence) > 1 / _RARE or math.exp(-unlucky) < _RARE


# -- one proxy ------------------------------------------------------------------------------


def show_proxy(reply: ProxyExplanation, events: list[Event], tracker: Tracker, page: Page) -> None:
    """Print for people all that is known of a proxy."""
    people = People(tracker.rows("sessions"))
    title = page.paint(format_value(reply.meant or reply.name), "bold")
    verdict = describe_proxy(reply)
    page.line(f"{title}  {page.paint(verdict.text, verdict.style)}")
    page.pairs(_list_details(reply, events, people, tracker))
    if events:
        page.line()
    for event in events:
        page.line(event_lines.format_line(event, people, page))


def find_last_end(events: list[Event]) -> Event | None:
    """Return from when on a proxy without a tunnel has had none, if its events say that."""
    return next((event for event in reversed(events) if event.kind in BEGINNINGS), None)


def describe_source(source: Source | None) -> str:
    """Return in words whose gossip it was."""
    if source is None:
        return "-"
    words = [f"session {source.session}"]
    if source.uid is not None:
        agent = f" {escape(source.agent)}" if source.agent else ""
        words[0] += f" (pid {source.pid}{agent}, uid {source.uid}{name_host(source.host)})"
    if source.ended:
        words.append("which has ended")
    return ", ".join(words)


def _describe_reports(reply: ProxyExplanation, tracker: Tracker) -> str:
    """Return in words what its lease has reported of the tunnel."""
    ago = listing.seconds_since(tracker, reply.reported)
    words = ["none yet" if ago is None else f"{format_duration(ago)} ago"]
    if reply.rtt is not None:
        words.append(f"round trip {format_rtt(reply.rtt)}")
    if reply.stale:
        words.append("too long ago: the lease is about to be released")
    return ", ".join(words)


def _describe_target(target: ProxyTarget, tracker: Tracker) -> str:
    """Return in words where a proxy can be dialled, and whether a dial is aimed at it."""
    words = {
        "aimed": f"lease {target.lease} is aimed at it",
        "off": "grants carry no address here (targets = off)",
        "paused": f"other addresses failed: not for the next {target.untargeted} dials",
        "ready": f"for the next dial of uid {target.uid}{name_host(target.host)}, or of all users"
        " with targets = any",
    }
    left = listing.seconds_until(tracker, target.until) or 0.0
    words["failed"] = (
        f"failed {target.failures} times in a row: not for {format_duration(max(0.0, left))}"
    )
    more = words.get(target.state)
    return target.address if more is None else f"{target.address}, {more}"


def _list_details(
    reply: ProxyExplanation, events: list[Event], people: People, tracker: Tracker
) -> Iterator[tuple[str, str]]:
    proxy, meant = reply.proxy, reply.meant
    if meant is not None and meant != reply.name:
        yield "asked for", f"{format_value(reply.name)}, which means {format_value(meant)}"
    if proxy.tracked:
        yield "group", format_value(proxy.group)
        yield "generation", f"{proxy.generation}; the newest of the group is {proxy.largest}"
        left = listing.seconds_until(tracker, proxy.expires)
        yield "expires", "-" if left is None else f"in {format_remaining(left)}"
        alone = ", and by no other that gossips: is it gone?" if reply.only_source else ""
        yield "mentioned by", describe_source(reply.source) + alone
        if (source := reply.group_source) is not None:
            yield "group set by", describe_source(source)
    if proxy.lease is not None:
        offered = ", which offers it" if reply.offered else ""
        yield "claimed by", f"lease {proxy.lease} of {people.describe(proxy.session)}{offered}"
        if "reported" in reply:
            yield "last report", _describe_reports(reply, tracker)
    elif proxy.tracked and (last := find_last_end(events)) is not None:
        ago = format_duration(max(0.0, -(listing.seconds_until(tracker, last.time) or 0.0)))
        yield "no tunnel", f"for {ago}, since {BEGINNINGS[last.kind]}"
    if reply.target is not None:
        yield "address", _describe_target(reply.target, tracker)
    if reply.aliases:
        yield "principals", format_names(reply.aliases)
    if (tombstone := reply.tombstone) is not None:
        left = listing.seconds_until(tracker, tombstone.until) or 0.0
        where = f"generation {tombstone.generation} of group {format_value(tombstone.group)}"
        yield "forgotten", f"{where}, for {format_duration(max(0.0, left))} more"
