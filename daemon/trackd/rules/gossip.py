"""Rows of gossip, as they are received: which ones say something new, and which belong together."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from trackd.rules.desired import Cohort
from trackd.rules.marks import Marks
from trackd.rules.mentions import TTL_OF, GossipRow
from trackd.rules.targets import Targets

Run = tuple[float | None, list[str]]
"""A TTL, and the names of neighbours in one message that carry it."""

LONGEST = sys.float_info.max
"""Seconds: any finite TTL."""


def find_unknown(
    tracked: Mapping[str, Cohort],
    marks: Marks,
    targets: Targets,
    entries: Sequence[Any],
    max_ttl: float,
) -> tuple[list[int], list[int]]:
    """Find the entries that do more than repeat what is tracked: see `Registry.unknown`."""
    found, long = list[int](), list[int]()
    for i, entry in enumerate(entries):
        try:
            name, group, generation, ttl = entry
            cohort = tracked[name]
        except (TypeError, ValueError, KeyError):
            if not _repeats(tracked, marks, targets, entry, max_ttl):
                found.append(i)
            continue
        if not (
            cohort.generation == generation
            and cohort.group == group
            and type(generation) is int
            and type(entry) is list
            and (ttl is None or type(ttl) is float or type(ttl) is int)
        ):
            found.append(i)
        elif ttl is not None and not 0 < ttl <= max_ttl:
            (long if max_ttl < ttl <= LONGEST else found).append(i)
    return found, long


def _repeats(
    tracked: Mapping[str, Cohort], marks: Marks, targets: Targets, entry: Any, max_ttl: float
) -> bool:
    """Return whether an entry of five elements only repeats what is tracked."""
    if type(entry) is not list or len(entry) != 5 or type(entry[4]) is not dict:
        return False
    name, group, generation, ttl, said = entry
    cohort = tracked.get(name) if type(name) is str else None
    if (
        cohort is None
        or cohort.generation != generation
        or cohort.group != group
        or type(generation) is not int
        or not (ttl is None or type(ttl) is float or type(ttl) is int)
        or (ttl is not None and not 0 < ttl <= max_ttl)
    ):
        return False
    for key, value in said.items():
        if key == "address":
            address = targets.by_name.get(name)
            if value != ("" if address is None else address.text):
                return False
        elif key != "terminating" or value is not (marks.get(name).said is not None):
            return False
    return True


def last_rows(rows: Sequence[GossipRow]) -> Sequence[GossipRow]:
    """Return rows of which no name is there twice: the last one of each."""
    last = {row[0]: row for row in rows}
    return rows if len(last) == len(rows) else list(last.values())


def runs(rows: Iterable[GossipRow]) -> Iterator[Run]:
    """Yield the names of neighbours that carry the same TTL, and that TTL."""
    for ttl, run in groupby(rows, TTL_OF):
        yield ttl, [row[0] for row in run]
