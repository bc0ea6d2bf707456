"""`trackctl explain`: why a lease would be granted or refused now; or all about one proxy.

The sentences are for a person on call, who has not read the rules. The numbers are those of the
rules, every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from trackd_client import Tracker
from trackd_client.cli import common, completions
from trackd_client.cli.output import event_lines, listing
from trackd_client.cli.output.event_lines import People
from trackd_client.cli.output.render import Cell, Page, duration, names, plural, remaining, shown
from trackd_client.core.event import Event

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
#: Claims from which something can be said about chance.
_FEW = 10
#: A proxy that this share of all dials reached is reached too often, when there are three or more.
_STICKY = 0.5
#: What is less probable than this is no chance.
_NO_CHANCE = 0.01


@click.command(epilog=_EPILOG)
@click.argument("proxy", required=False, shell_complete=completions.proxies)
@common.json_option("Print JSON.")
@click.pass_obj
def explain(options: common.Options, *, proxy: str | None, as_json: bool) -> None:
    """Tell why no agent dials, or all about one PROXY.

    PROXY is a name from gossip, or what a proxy presents: its principals.
    """
    with common.ended(), options.tracker() as tracker:
        told = tracker.explain(proxy)
        if proxy is None:
            if as_json:
                common.print_json({**told, "sentences": [s.text for s in sentences(told)]})
            else:
                show(told, Page())
            return
        events = [
            event
            for event in tracker.log()["events"]
            if event_lines.concerns(event, told["meant"] or proxy)
        ][-_EVENTS:]
        if as_json:
            common.print_json({**told, "events": [event_lines.as_json(each) for each in events]})
        else:
            show_proxy(told, events, tracker, Page())


# -- the whole ------------------------------------------------------------------------------


def show(told: dict[str, Any], page: Page) -> None:
    """Print for people why a lease would be granted or refused."""
    first, *more = sentences(told)
    page.say(first.text, first.style)
    page.line()
    page.facts(numbers(told))
    if more:
        page.line()
    for sentence in more:
        page.say(sentence.text, sentence.style)


def numbers(told: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Return every number of the rule, with what it is."""
    count = told["connection_count"]
    mode = f"at most {count}: proxy peering" if count > 0 else "one to every desired proxy"
    yes = {True: "yes", False: "no"}
    yield "tracked", f"{told['tracked']:>6}  proxies that gossip speaks of"
    yield "desired", f"{told['desired']:>6}  of them of their group's newest generation"
    yield "connection count", f"{count:>6}  {mode}"
    yield "target", f"{told['target']:>6}  connections that are wanted"
    yield "claimed", f"{told['claimed']:>6}  proxies that leases hold, desired or not"
    yield "claimed, desired", f"{told['claimed_desired']:>6}  of them desired"
    yield "in flight", f"{told['inflight']:>6}  leases that dial now"
    yield "waiting", f"{told['waiting']:>6}  requests for a lease that wait their turn"
    yield "missing", f"{told['missing_count']:>6}  desired proxies that no lease holds"
    sum_ = f"{told['claimed_desired']} claimed and desired + {told['inflight']} in flight"
    yield "need", f"{yes[told['need']]:>6}  is target {told['target']} > {sum_}?"
    nothing = f"{told['inflight']} in flight, {told['claimed']} claimed, {told['tracked']} tracked"
    yield "bootstrap", f"{yes[told['bootstrap']]:>6}  nothing in flight, and nothing claimed or"
    yield "", f"{'':>6}  nothing tracked? {nothing}"


def sentences(told: dict[str, Any]) -> list[Cell]:
    """Return in words what is decided, and what may be wrong; the first is the decision."""
    found = [_decision(told), *_missing(told), *_recent(told)]
    return [sentence for sentence in found if sentence.text]


def _decision(told: dict[str, Any]) -> Cell:
    match told["reason"]:
        case "bootstrap":
            return Cell("A lease would be granted: some agent has to dial first.", "green")
        case "need":
            return Cell("A lease would be granted: a tunnel is missing.", "green")
        case "satisfied" if told["missing_count"] and told["target"] > told["claimed_desired"]:
            return Cell(
                "No lease would be granted: for every missing tunnel an agent is dialling.",
                "yellow",
            )
        case "satisfied":
            return Cell("No lease would be granted: every wanted tunnel is there.", "green")
        case "waiters":
            return Cell(
                "No lease would be granted to a newcomer: others wait, and are served first.",
                "yellow",
            )
        case "budget":
            wait = told.get("retry_after")
            when = "" if wait is None else f"; the next may begin in {wait:.1f} s"
            return Cell(
                f"No lease would be granted now: dial_rate allows no dial yet{when}.", "yellow"
            )
        case "store":
            return Cell(
                "No lease would be granted: changes cannot be stored; see trackctl status.", "red"
            )
        case other:
            return Cell(f"The daemon says: {shown(other)}.", "yellow")


def _missing(told: dict[str, Any]) -> Iterator[Cell]:
    missing, total = told["missing"], told["missing_count"]
    if not missing:
        return
    yield Cell(f"Without a tunnel: {names(missing, total)}.")
    wanted = told["target"] - told["claimed_desired"]
    if wanted <= 0:
        yield Cell("That is meant so: the connection count allows no more.")
    elif told["inflight"] >= wanted:
        yield Cell(
            f"{plural(told['inflight'], 'lease')} in flight may reach them; when none does for"
            " long, see trackctl leases --in-flight: who holds them, and since when.",
            "yellow",
        )
    elif told["reason"] == "need" and not told["waiting"]:
        yield Cell(
            "No agent asks for a lease at this moment: they pause after lost claims, or there are"
            " none (trackctl sessions).",
            "yellow",
        )


def _recent(told: dict[str, Any]) -> Iterator[Cell]:
    """Say how the last claims went, and whether chance explains it."""
    recent = told["recent"]
    duplicates = recent["duplicates"]
    claims = recent["claims"] + duplicates
    if not duplicates:
        return
    text = f"Of the last {plural(claims, 'claim')}, {duplicates} met a proxy that was held"
    met = [f"{shown(name)} ({times})" for name, times in recent["met"]]
    yield Cell(f"{text}: {', '.join(met)}.")
    if told["target"] <= told["claimed_desired"] or claims < _FEW:
        return
    often, times = recent["met"][0]
    desired, missing = told["desired"], told["missing_count"]
    chance = (1 - missing / desired) ** duplicates
    if desired > 2 and times > _STICKY * claims:  # of two, one is half
        yield Cell(
            f"The load balancer sends most dials to {shown(often)}: look there for affinity by"
            " source address, and for proxies that it does not know.",
            "yellow",
        )
    elif chance < _NO_CHANCE:
        yield Cell(
            "That so many dials reach none that is missing is no chance: does the load balancer"
            " know them? trackctl forget drops those that are gone for good.",
            "yellow",
        )


# -- one proxy ------------------------------------------------------------------------------


def show_proxy(told: dict[str, Any], events: list[Event], tracker: Tracker, page: Page) -> None:
    """Print for people all that is known of a proxy."""
    people = People(tracker.rows("sessions"))
    title = page.paint(shown(told["meant"] or told["name"]), "bold")
    verdict = about(told)
    page.line(f"{title}  {page.paint(verdict.text, verdict.style)}")
    page.facts(_facts(told, people, tracker))
    if events:
        page.line()
    for event in events:
        page.line(event_lines.line(event, people, page))


def about(told: dict[str, Any]) -> Cell:
    """Return in words why a proxy is claimed, or is not."""
    proxy = told["proxy"]
    match told["why"]:
        case "claimed" if proxy["desired"]:
            return Cell("desired, and claimed", "green")
        case "claimed" if proxy["tracked"]:
            newer = f"generation {proxy['largest']} is newer"
            return Cell(f"claimed, though it is not desired: {newer}", "yellow")
        case "claimed":
            return Cell("claimed, though it is tracked no more", "yellow")
        case "missing":
            return Cell("desired, and nobody holds it", "red")
        case "old_generation":
            return Cell(f"not desired: generation {proxy['largest']} of its group is newer", "dim")
        case "forgotten":
            return Cell("forgotten by an admin: old gossip does not bring it back", "yellow")
        case "unknown":
            return Cell("not known: neither gossip nor a claim speaks of it", "yellow")
        case other:  # of a newer daemon
            return Cell(shown(other))


def _facts(told: dict[str, Any], people: People, tracker: Tracker) -> Iterator[tuple[str, str]]:
    proxy, meant = told["proxy"], told["meant"]
    if meant is not None and meant != told["name"]:
        yield "asked for", f"{shown(told['name'])}, which means {shown(meant)}"
    if proxy["tracked"]:
        yield "group", shown(proxy["group"])
        yield "generation", f"{proxy['generation']}; the newest of the group is {proxy['largest']}"
        left = listing.left(tracker, proxy["expires"])
        yield "expires", "-" if left is None else f"in {remaining(left)}"
        yield "mentioned by", people.who(proxy["mentioned_by"])
    if proxy["lease"] is not None:
        yield "claimed by", f"lease {proxy['lease']} of {people.who(proxy['session'])}"
    if told["aliases"]:
        yield "principals", names(told["aliases"])
    if (tombstone := told["tombstone"]) is not None:
        left = listing.left(tracker, tombstone["until"]) or 0.0
        where = f"generation {tombstone['generation']} of group {shown(tombstone['group'])}"
        yield "forgotten", f"{where}, for {duration(max(0.0, left))} more"
