"""`trackctl watch` and `log`: what happens and what happened, with every gap said aloud."""

from __future__ import annotations

import json
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

import pytest

from helpers.support import PATIENCE
from helpers.trackctl import start_trackctl, trackctl
from trackd_client import Proxy, Tracker
from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.testing import Daemon, MakeDaemon


@contextmanager
def watching(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run `trackctl watch` for as long as the block, and end it as a person does."""
    process = start_trackctl("--endpoint", daemon.endpoint, "watch", *arguments)
    try:
        yield process
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=PATIENCE)
        assert (process.returncode, err) == (0, "")
    finally:
        process.kill()
        process.communicate()


def next_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, "watch has ended"
    return line.rstrip()


def next_event(process: subprocess.Popen[str]) -> dict[str, Any]:
    event = json.loads(next_line(process))
    assert list(event) == ["revision", "time", "wall", "kind", "fields"]
    assert isinstance(event, dict)
    return event


def test_watch_prints_a_line_for_each_change(trackd_daemon: Daemon) -> None:
    with watching(trackd_daemon) as watch:
        assert "snapshot: 0 proxies, 0 leases, 0 sessions" in next_line(watch)
        with Tracker(trackd_daemon.endpoint, name="me") as tracker:
            tracker.track_expected(Proxy("p1", "east", 3))
            lease = tracker.try_acquire()
            assert lease is not None
            lease.claim("p1")
        lines = [next_line(watch) for _ in range(6)]
    when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"
    assert all(re.match(rf"{when} +\d+  ", line) for line in lines)
    said = [re.sub(rf"^{when} +\d+  ", "", line) for line in lines]
    assert re.fullmatch(r"session 1 opened by pid \d+ me, uid \d+", said[0])
    assert re.match(
        r"p1 is tracked, generation 3 of group east, says session 1 \(pid \d+ me\)", said[1]
    )
    assert said[2].startswith("lease 1 granted to session 1 (pid ")
    assert said[3].startswith("p1 claimed by lease 1 of session 1 (pid ")
    assert said[4] == "lease 1 released, which held p1: released by its agent"
    assert said[5].endswith(" me ended: released by its agent")


def test_watch_goes_on_over_a_restart_and_misses_nothing(trackd_daemon: Daemon) -> None:
    with watching(trackd_daemon, "--json") as watch:
        first = next_event(watch)
        assert (first["kind"], first["fields"]["proxies"]) == ("snapshot", [])
        with Tracker(trackd_daemon.endpoint) as tracker:
            tracker.track_expected(Proxy("p1"))
            trackd_daemon.kill()
            trackd_daemon.start()
            tracker.track_expected(Proxy("p2"))
            events = [next_event(watch)]
            while events[-1]["fields"].get("name") != "p2":
                events.append(next_event(watch))
    revisions = [event["revision"] for event in events]
    assert revisions == list(range(first["revision"] + 1, revisions[-1] + 1))
    assert "daemon_started" in [event["kind"] for event in events]
    assert "gap" not in [event["kind"] for event in events]


def test_watch_tells_of_a_gap_and_begins_again_with_a_snapshot(
    make_trackd_daemon: MakeDaemon,
) -> None:
    daemon = make_trackd_daemon(state_dir="")
    with watching(daemon, "--json") as watch:
        assert next_event(watch)["kind"] == "snapshot"
        with Tracker(daemon.endpoint) as tracker:
            tracker.track_expected(Proxy("p1"))
        while next_event(watch)["kind"] != "session_ended":
            pass
        daemon.restart()  # it keeps no state, so that nobody can tell what happened meanwhile
        events = [next_event(watch)]
        while events[-1]["kind"] != "snapshot":
            events.append(next_event(watch))
    gap, snapshot = events[-2:]
    assert gap["kind"] == "gap"
    assert snapshot["fields"]["proxies"] == []


def test_watch_shows_the_kinds_that_were_asked_for(trackd_daemon: Daemon) -> None:
    asked = ("--no-snapshot", "--kind", "proxy_tracked", "--json")
    with watching(trackd_daemon, *asked) as watch, Tracker(trackd_daemon.endpoint) as tracker:
        # Nothing tells when it has begun to listen, so there is something new until it does.
        watch_began = json.loads(_first_line_while_tracking(watch, tracker))
    assert watch_began["kind"] == "proxy_tracked"


def _first_line_while_tracking(watch: subprocess.Popen[str], tracker: Tracker) -> str:

    assert watch.stdout is not None
    for number in range(1000):
        tracker.track_expected(Proxy(f"p{number}"))
        if select.select([watch.stdout], [], [], 0.05)[0]:
            return next_line(watch)
    raise AssertionError("watch says nothing")


def test_watch_ends_with_3_when_there_is_no_daemon(trackd_daemon: Daemon) -> None:
    trackd_daemon.stop()
    ended = trackctl("--endpoint", trackd_daemon.endpoint, "watch")
    assert (ended.returncode, ended.stdout) == (3, "")


def log(daemon: Daemon, *arguments: str) -> dict[str, Any]:
    done = trackctl("--endpoint", daemon.endpoint, "log", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert isinstance(told, dict)
    return told


def test_log_tells_what_happened_restarts_included(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        trackd_daemon.restart()
        tracker.track_expected(Proxy("p2"))
    told = log(trackd_daemon)
    kinds = [event["kind"] for event in told["events"]]
    assert kinds == [
        *("daemon_started", "session_opened", "proxy_tracked"),
        *("daemon_started", "proxy_tracked", "session_ended"),
    ]
    assert told["complete"] is True
    assert told["newest"] == told["events"][-1]["revision"]
    people = trackctl("--endpoint", trackd_daemon.endpoint, "log")
    assert people.stderr == ""
    assert len(people.stdout.splitlines()) == len(kinds)
    assert "p2 is tracked, generation 0, says session 1" in people.stdout


def test_log_can_be_narrowed_by_time_and_by_what_it_is_about(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        lease = tracker.try_acquire()
        assert lease is not None
        lease.claim("p1")
        between = time.time()
        lease.release()
    before = log(trackd_daemon, "--until", repr(between))["events"]
    after = log(trackd_daemon, "--since", repr(between))["events"]
    assert [event["kind"] for event in after] == ["lease_released", "session_ended"]
    assert [*before, *after] == log(trackd_daemon)["events"]
    about = log(trackd_daemon, "--proxy", "p1")["events"]
    assert [event["kind"] for event in about] == [
        "proxy_tracked",
        "proxy_claimed",
        "lease_released",
    ]
    of_lease = log(trackd_daemon, "--lease", "1", "--session", "1")["events"]
    assert [event["kind"] for event in of_lease] == [
        "lease_granted",
        "proxy_claimed",
        "lease_released",
    ]
    two = log(trackd_daemon, "--kind", "proxy_tracked", "--kind", "session_ended", "--limit", "2")
    assert [event["kind"] for event in two["events"]] == ["proxy_tracked", "session_ended"]
    wrong = trackctl("--endpoint", trackd_daemon.endpoint, "log", "--since", "soon")
    assert wrong.returncode == 2
    assert "'soon' is not a time; write 03:12" in wrong.stderr


def test_log_says_when_it_does_not_reach_so_far_back(make_trackd_daemon: MakeDaemon) -> None:
    small = make_trackd_daemon(history=10)
    with Tracker(small.endpoint) as tracker:
        for number in range(600):
            tracker.track_expected(Proxy(f"p{number}"))
    told = trackctl("--endpoint", small.endpoint, "log", "--since", "10m", "--limit", "1")
    assert "the history begins at " in told.stderr
    assert log(small, "--since", "10m")["complete"] is False
    older = make_trackd_daemon(history=256)
    with Tracker(older.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        assert tracker.adopt("p1")
        for _ in range(600):
            lease = tracker.try_acquire()
            assert lease is not None
            lease.release()
    older.kill()
    older.start()
    kept = log(older)
    claims = [event for event in kept["events"] if event["kind"] == "proxy_claimed"]
    assert [event["fields"]["name"] for event in claims] == ["p1"], "600 lost dials later"
    assert claims[0]["revision"] < kept["oldest"]
    assert kept["complete"] is False
    told = trackctl("--endpoint", older.endpoint, "log", "--limit", "1")
    assert re.search(r"begins at .*; before .* it has no grants and no lost dials", told.stderr)
    none = make_trackd_daemon(history=0)
    said = trackctl("--endpoint", none.endpoint, "log")
    assert (said.returncode, said.stdout) == (0, "")
    assert "the daemon keeps no history" in said.stderr


@pytest.mark.slow
def test_watch_through_a_storm_and_a_restart_is_complete_or_says_what_is_missing(
    trackd_daemon: Daemon,
) -> None:
    messages, each = 100, 1000
    with watching(trackd_daemon, "--json") as watch, Tracker(trackd_daemon.endpoint) as tracker:
        first = next_event(watch)
        mirror = Mirror(first["fields"])
        told = Thread(target=storm, args=(trackd_daemon, tracker, messages, each))
        told.start()
        last, gaps, changes = first["revision"], 0, 0
        while "the-end" not in mirror.proxies:
            event = Event(**next_event(watch))
            if event.kind == "gap":
                gaps += 1
                assert event.fields["after"] == last, "the gap begins where the last event was"
                continue
            if event.kind == "snapshot":
                assert event.revision > last
                mirror = Mirror(event.fields)
            else:
                changes += event.kind == "proxy_tracked"
                assert event.revision == last + 1, "a silent gap"
                mirror.apply(event)
            last = event.revision
        told.join()
        there = tracker.snapshot()
    print(f"{changes} changes were told one by one, {gaps} gaps were said aloud")
    assert gaps or changes == messages * each + 1
    here = mirror.snapshot()
    known = ("name", "group", "generation", "desired", "lease")
    assert [[row[name] for name in known] for row in here["proxies"]] == [
        [row[name] for name in known] for row in there["proxies"]
    ]
    assert len(here["proxies"]) == messages * each + 1


def storm(daemon: Daemon, tracker: Tracker, messages: int, each: int) -> None:
    """Make as many changes as there can be, with a restart of the daemon in the middle."""
    for message in range(messages):
        if message == messages // 2:
            daemon.restart()
        tracker.track_expected(*(Proxy(f"p-{message}-{i}", ttl=600.0) for i in range(each)))
    tracker.track_expected(Proxy("the-end"))
