"""`trackctl log`: what happened, from the history that the daemon keeps."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta
from typing import Any

import click

from trackd_client.cli import common, completions
from trackd_client.cli.output import event_lines
from trackd_client.cli.output.event_lines import STYLES, People
from trackd_client.cli.output.render import Page, format_time, note_rest
from trackd_client.core.event import GAP, SNAPSHOT, Event

_EPILOG = """\b
Examples:
  trackctl log --since 10m
  trackctl log --since 03:10 --until 03:15
  trackctl log --since '2026-11-24 03:10' --proxy proxy-7
  trackctl log --session 3 --kind lease_released --json

A time is a clock time of today (03:12, 03:12:07; of yesterday, when it is not
so late yet), a day and a time (2026-11-24 03:12), a while ago (90s, 10m, 2h,
3d), or Unix time. Restarts of the daemon are in the log.

\b
JSON: {"events": [{"revision", "time", "wall", "kind", "fields"}], "oldest":
the revision from which on none is missing (before it, grants and lost dials
are), "newest": the last one, "history": events that the daemon keeps (0:
none), "complete": whether none is missing since --since}
"""
_AGO = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Moment(click.ParamType[float]):
    """A moment as people write it; becomes Unix time."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it, or fail with what would be right."""
        if isinstance(value, float):
            return value
        found = read_moment(str(value), time.time())
        if found is None:
            self.fail(
                f"{value!r} is not a time; write 03:12, '2026-11-24 03:12', 10m (ago) or Unix time",
                param,
                ctx,
            )
        return found


def read_moment(text: str, now: float) -> float | None:
    """Return the Unix time that a text means, or None when it means none."""
    text = text.strip().removesuffix(" ago")
    if ago := _AGO.fullmatch(text):
        return now - float(ago[1]) * _SECONDS[ago[2]]
    if re.fullmatch(r"\d{9,}(\.\d*)?", text):
        return float(text)
    today = datetime.fromtimestamp(now).astimezone()
    if re.fullmatch(r"\d?\d:\d\d(:\d\d(\.\d+)?)?", text):
        try:
            clock = datetime.fromisoformat(
                f"{today.date()} {text if text[2:3] == ':' else f'0{text}'}"
            )
        except ValueError:
            return None
        if clock.timestamp() > now:
            clock -= timedelta(days=1)
        return clock.timestamp()
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


@click.command(epilog=_EPILOG)
@click.option("--since", type=Moment(), metavar="TIME", help="Only what happened from then on.")
@click.option("--until", type=Moment(), metavar="TIME", help="Only what happened until then.")
@click.option(
    "--proxy",
    metavar="NAME",
    shell_complete=completions.proxies,
    help="Only what concerns this proxy.",
)
@click.option("--session", type=int, help="Only what concerns this session.")
@click.option("--lease", type=int, help="Only what concerns this lease.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    type=click.Choice([kind for kind in STYLES if kind not in {SNAPSHOT, GAP}]),
    metavar="KIND",
    help="Only events of this kind; may be given again.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=0),
    metavar="EVENTS",
    help="Show the newest so many; 0: all. On a terminal 50 by default.",
)
@common.json_option("Print JSON.")
@click.pass_obj
def log(
    options: common.Options,
    /,
    *,
    since: float | None,
    until: float | None,
    proxy: str | None,
    kinds: tuple[str, ...],
    limit: int | None,
    as_json: bool,
    **equal: int | None,
) -> None:
    """Show what happened, as far as the daemon remembers."""
    with common.report_errors(), options.connect() as tracker:
        reply = tracker.log(older=True)
        people = People(tracker.rows("sessions"))
    events: list[Event] = reply["events"]
    found = []
    for event in events:
        people.note(event)
        if (
            (since is None or event.wall >= since)
            and (until is None or event.wall <= until)
            and (not kinds or event.kind in kinds)
            and (proxy is None or event_lines.concerns(event, proxy))
            and all(value is None or event.fields.get(key) == value for key, value in equal.items())
        ):
            found.append(event)
    complete = reaches(reply, since)
    if as_json:
        shown = found[-limit:] if limit else found
        document = {name: reply[name] for name in ("oldest", "newest", "history")}
        document |= {"complete": complete, "events": [event_lines.to_json(e) for e in shown]}
        common.print_json(document)
        return
    page = Page()
    most = page.limit(limit)
    shown = found if most is None else found[-most:]
    if not reply["history"]:
        page.note("the daemon keeps no history: its setting history is 0")
    elif not complete:
        page.note(describe_beginning(reply))
    for event in shown:
        page.line(event_lines.format_line(event, people, page))
    note_rest(len(shown), len(found), page)
    if not found and reply["history"]:
        page.note("no event matches")


def reaches(reply: dict[str, Any], since: float | None) -> bool:
    """Tell whether the history reaches back to a moment, or to the beginning."""
    if reply["oldest"] is None:
        return bool(reply["newest"] == 0)
    if reply["oldest"] <= 1:
        return True
    whole = [event for event in reply["events"] if event.revision >= reply["oldest"]]
    return since is not None and bool(whole) and whole[0].wall <= since


def describe_beginning(reply: dict[str, Any]) -> str:
    """Return in words how far back the history reaches."""
    events: list[Event] = reply["events"]
    if not events:
        return "the history is empty: earlier events are not kept"
    begins = f"the history begins at {format_time(events[0].wall)}"
    whole = next((event for event in events if event.revision >= reply["oldest"]), None)
    if whole is None or whole is events[0]:
        return f"{begins}: earlier events are not kept"
    return f"{begins}; before {format_time(whole.wall)} it has no grants and no lost dials"
