"""Real agents in processes of their own record what they call; the checker finds nothing wrong."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from helpers.event_watch import Watch
from helpers.long_form import choose
from helpers.support import wait_until
from histories.checker import check
from histories.corruption import corrupt
from histories.processes import AgentProcess
from histories.recorder import read_events, read_history, record
from histories.vocabulary import Call
from trackd_client import Event, Tracker
from trackd_client.testing import MakeDaemon

PROCESSES = 4
AGENTS_EACH = 3
KILLS = choose(3, 60)
CORRUPTIONS = choose(25, 60)


def wait_written(directory: Path, more: int) -> None:
    """Wait until the recorders have written some more bytes."""

    def written() -> int:
        return sum(path.stat().st_size for path in directory.iterdir())

    enough = written() + more
    wait_until(lambda: written() > enough)


@pytest.mark.both_stores
@pytest.mark.slow
@pytest.mark.timeout(choose(600, 7200))
def test_the_history_of_agents_is_what_the_rules_allow_over_kills_of_the_daemon(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    daemon = make_trackd_daemon(history=1_000_000)
    chance = random.Random(15)
    with ExitStack() as stack:
        watch = Watch(Tracker(daemon.endpoint, timeout=60.0))
        stack.callback(watch.close)
        processes = [
            AgentProcess(
                *(daemon.endpoint, tmp_path, str(number), ("sync", "asyncio")[number % 2]),
                count=AGENTS_EACH,
            )
            for number in range(PROCESSES)
        ]
        for process in processes:
            stack.callback(process.kill)
        for _ in range(KILLS):
            wait_written(tmp_path, chance.randrange(20_000, 100_000))
            daemon.restart()
        wait_written(tmp_path, 100_000)
        with Tracker(daemon.endpoint, timeout=60.0) as tracker:
            record(tracker, tmp_path / "last.jsonl")
            look(tracker)
            for process in processes:
                process.end()
            look(tracker)
            events = read_events(tracker)
        watch.reaches(events[-1].revision)
        assert watch.told[0].kind == "snapshot"
        seen = [event for event in watch.told if event.kind != "snapshot"]
    history = read_history(tmp_path.iterdir())
    assert not [event for event in seen if event.kind == "gap"]
    assert check(history, [*events, *seen]) == []
    assert_much_happened(history, events)
    assert_lies_are_found(chance, history, events)


def look(tracker: Tracker) -> None:
    """Read all that there is."""
    tracker.status()
    tracker.snapshot()


def assert_much_happened(history: list[Call], events: list[Event]) -> None:
    """Check that the history is worth the name, and print its numbers."""
    kinds = Counter(event.kind for event in events)
    lost = sum(call.reply is None for call in history)
    seen_waiting = sum(
        row["waiting"]
        for call in history
        if call.reply is not None and call.fields.get("of") == "sessions"
        for row in call.reply["rows"]
    )
    assert kinds["daemon_started"] == KILLS + 1
    assert min(kinds[kind] for kind in ("lease_granted", "proxy_claimed", "proxy_tracked")) > 10
    assert lost
    assert seen_waiting
    print(
        f"\n{len(history)} calls, {lost} of them without a reply; {len(events)} events;"
        f" {KILLS} kills; {seen_waiting} times somebody was seen to wait\n{dict(kinds)}"
    )


def assert_lies_are_found(chance: random.Random, history: list[Call], events: list[Event]) -> None:
    """Check that nearly each single change of a true history is found, and print how many."""
    missed: Counter[str] = Counter()
    for _ in range(CORRUPTIONS):
        calls, happened = list(history), list(events)
        kind = corrupt(chance, calls, happened)
        missed[kind] += not check(calls, happened)
    print(f"{CORRUPTIONS} corruptions, of which {missed.total()} were not found: {dict(+missed)}")
    assert missed.total() <= CORRUPTIONS // 10
