"""Makes the changes of marks (rule 15): which proxies are terminating, and until when. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf

from trackd.rules.flips import Word
from trackd.rules.marks import UNMARKED, Mark
from trackd.rules.mentions import GossipRow
from trackd.rules.registry import Place
from trackd.rules.tracker import Tracker
from trackd.state.changes import Marked


def mark(
    tracker: Tracker, marks: Mapping[str, Mark], by: int | None, fresh: Collection[str] = ()
) -> Marked | None:
    """Return the change that gives names their marks; None without any.

    Args:
        tracker: which proxies are tracked, and marked now.
        marks: by name.
        by: the number of the session that said so, or None.
        fresh: those of the names that are tracked since this message.
    """
    if not marks:
        return None
    rows = [(name, *mark) for name, mark in marks.items()]
    flipped = [
        (name, mark != UNMARKED)
        for name, mark in marks.items()
        if tracker.is_tracked(name)
        and (mark != UNMARKED) != (tracker.is_marked(name) and name not in fresh)
    ]
    return Marked(by, rows, flipped)


def mark_by_gossip(
    tracker: Tracker,
    rows: Sequence[GossipRow],
    moved: Mapping[str, Place | None],
    said: Mapping[str, bool],
    now: float,
    by: int,
) -> Marked | None:
    """Return the change that marks what gossip says, once its proxies are tracked.

    Args:
        tracker: which proxies are tracked, and marked now.
        rows: the message.
        moved: the names that it has tracked or moved, with their places before.
        said: the names of which it says whether they are terminating.
        now: seconds of CLOCK_BOOTTIME.
        by: the number of the session that sent it.
    """
    marks = tracker.marks.after(rows, moved, said, now, tracker.proxy_expiry)
    # One that was retired before it was tracked: no event has said that it is marked.
    known = tracker.marks.by_name
    fresh = {name: known[name] for name, old in moved.items() if old is None and name in known}
    return mark(tracker, {**fresh, **marks}, by, fresh)


def mark_late(tracker: Tracker, words: Mapping[str, Word], now: float) -> list[Marked]:
    """Return the changes of words of gossip that had to wait, in the order of their sessions.

    Args:
        tracker: which proxies are tracked, and marked now.
        words: by name.
        now: seconds of CLOCK_BOOTTIME.
    """
    marks: dict[int, dict[str, Mark]] = {}
    for name, (_, until, by) in words.items():
        mark_now = tracker.marks.get(name)
        if tracker.is_tracked(name) and (until is None or until >= now):
            marks.setdefault(by, {})[name] = mark_now._replace(said=until)
    return [change for by in sorted(marks) if (change := mark(tracker, marks[by], by)) is not None]


def unmark(tracker: Tracker, names: Sequence[str]) -> Marked | None:
    """Return the change that ends what gossip said of proxies, before they are dropped."""
    rows = [(name, *mark) for name, mark in tracker.without_gossip(names).items()]
    return Marked(None, rows, []) if rows else None


def retire(tracker: Tracker, name: str, by: int) -> Marked | None:
    """Return the change that marks a name for as long as its lease holds it; None: it is so."""
    old = tracker.marks.get(name)
    return None if old.retired else mark(tracker, {name: old._replace(retired=inf)}, by)


def end_hold(tracker: Tracker, name: str, by: int) -> Marked | None:
    """Return the change that ends the hold of a name that was retired before, or None."""
    old = tracker.marks.get(name)
    if old.retired is None:
        return None
    return mark(tracker, {name: old._replace(retired=None)}, by)


def begin_hold(tracker: Tracker, name: str, now: float, by: int) -> Marked | None:
    """Return the change that lets a retired name stay marked for a moment, or None."""
    if tracker.marks.get(name).retired is None:
        return None
    return mark(tracker, {name: tracker.retire_hold(name, now)}, by)
