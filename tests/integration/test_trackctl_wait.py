"""`trackctl wait`: what is enough, how long it waits, and what it says."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from helpers.support import PATIENCE
from helpers.trackctl import start_trackctl, trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon


@pytest.fixture
def agent(trackd_daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(trackd_daemon.endpoint, timeout=PATIENCE) as tracker:
        yield tracker


def covered(daemon: Daemon, *arguments: str) -> bool:
    """Look once, and return whether it is enough."""
    done = trackctl("--endpoint", daemon.endpoint, "wait", "--timeout=0", *arguments)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode == 0


def test_enough_is_as_the_flags_say(trackd_daemon: Daemon, agent: Tracker) -> None:
    for flags in ((), ("--full",), ("--at-least=1",), ("--missing-at-most=50%",)):
        assert not covered(trackd_daemon, *flags), "with no proxy known nobody is covered"
    assert covered(trackd_daemon, "--allow-none")
    agent.track_expected(*(Proxy(f"p{i}") for i in range(4)))
    leases = [agent.adopt(name) for name in ("p0", "p1", "elsewhere")]
    assert all(leases)
    assert not covered(trackd_daemon)
    assert not covered(trackd_daemon, "--allow-none")
    assert covered(trackd_daemon, "--at-least=2")
    assert not covered(trackd_daemon, "--at-least=3"), "only desired proxies count"
    assert covered(trackd_daemon, "--missing-at-most=2")
    assert not covered(trackd_daemon, "--missing-at-most=1")
    assert covered(trackd_daemon, "--missing-at-most=50%")
    assert not covered(trackd_daemon, "--missing-at-most=49%")
    agent.set_connection_count(2)
    assert covered(trackd_daemon, "--full")


def test_it_returns_when_the_last_wanted_tunnel_is_there(
    trackd_daemon: Daemon, agent: Tracker
) -> None:
    agent.track_expected(Proxy("p0"), Proxy("p1"))
    assert agent.adopt("p0")
    waits = start_trackctl("--endpoint", trackd_daemon.endpoint, "wait", "--json")
    assert agent.adopt("p1")
    out, err = waits.communicate(timeout=PATIENCE)
    assert (waits.returncode, err) == (0, "")
    told = json.loads(out)
    assert told.pop("waited") >= 0
    assert told == {
        "covered": True,
        "missing": 0,
        "target": 2,
        "claimed_desired": 2,
        "desired": 2,
        "tracked": 2,
    }


def test_what_is_missing_when_the_time_is_up_is_said(trackd_daemon: Daemon, agent: Tracker) -> None:
    agent.track_expected(Proxy("p0"), Proxy("p1"))
    arguments = ("--endpoint", trackd_daemon.endpoint, "wait", "--timeout=0.2")
    people, script = trackctl(*arguments), trackctl(*arguments, "--json")
    assert people.returncode == script.returncode == 1
    assert "not in time: 2 of 2 proxies have no tunnel" in people.stderr
    assert (json.loads(script.stdout)["covered"], json.loads(script.stdout)["missing"]) == (
        False,
        2,
    )


def test_it_waits_for_a_daemon_that_starts_later(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(start=False)
    once = trackctl("--endpoint", daemon.endpoint, "wait", "--timeout=0")
    late = trackctl("--endpoint", daemon.endpoint, "wait", "--timeout=0.2")
    assert (once.returncode, late.returncode) == (3, 3)
    flags = ("--endpoint", daemon.endpoint, "--timeout=0.2", "wait", "--allow-none")
    waits = start_trackctl(*flags)
    assert waits.stderr is not None
    assert "still waiting: " in waits.stderr.readline()
    daemon.start()
    out, _ = waits.communicate(timeout=PATIENCE)
    assert (waits.returncode, out) == (0, "no proxy is known yet; the first dial brings gossip\n")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--missing-at-most=x",), "'x' is neither a number nor a percentage"),
        (("--missing-at-most=101%",), "'101%' is more than 100%"),
        (("--at-least=0",), "0 is not in the range x>=1"),
        (("--full", "--at-least=1"), "exclude one another"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], sentence: str) -> None:
    wrong = trackctl("--endpoint", "/nowhere/at/all", "wait", *arguments)
    assert wrong.returncode == 2
    assert sentence in wrong.stderr
