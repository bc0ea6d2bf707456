"""`trackctl top` in a real terminal: what it shows, what keys do, and how it leaves."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator

import pytest

from helpers.agents import Agent
from helpers.support import paused, wait_until
from helpers.trackctl import TRACKCTL, Terminal, trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon


@pytest.fixture
def trackd_daemon(make_trackd_daemon: MakeDaemon) -> Daemon:
    """A daemon that gives a lease in flight all the time that a test takes."""
    return make_trackd_daemon(claim_timeout=0)


@pytest.fixture
def agent(trackd_daemon: Daemon) -> Iterator[Agent]:
    """An agent that holds p1 and old, and has a lease in flight."""
    with Agent(trackd_daemon.endpoint) as agent:
        rows = [[f"p{i}", "east" if i % 2 else "", 3] for i in range(1, 31)]
        agent.do("track", [*rows, ["old", "east", 2]])
        for name in ("p1", "old"):
            assert agent.do("claim", agent.do("acquire"), name) == name
        agent.do("acquire")
        yield agent


@pytest.fixture
def terminal(trackd_daemon: Daemon, agent: Agent) -> Iterator[Terminal]:
    """A terminal of 80 by 24 in which `trackctl top` runs."""
    command = [*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "top", "--interval", "0.2"]
    with Terminal(*command) as terminal:
        terminal.shows("of 31 · sort name")
        yield terminal


def is_given_back(terminal: Terminal) -> None:
    """Check that the shell has the terminal as it was: its screen, echo, and the cursor."""
    terminal.ends()
    terminal.enter("stty -a | grep -o ' echo ' && tput cnorm && echo 'all' 'back'")
    screen = terminal.shows("all back")
    assert "trackd_client.cli" in screen, "the screen from before is there again"
    assert "\n echo" in screen
    assert terminal.state("#{alternate_on} #{cursor_flag}") == "0 1"


def test_top_shows_everything_at_once_in_80_by_24(terminal: Terminal, agent: Agent) -> None:
    screen = terminal.shows("requests ")
    lines = screen.rstrip("\n").split("\n")
    assert len(lines) == 24
    assert max(map(len, lines)) <= 80
    assert lines[0] == "example.com  29 of 30 proxies have no tunnel; 1 agent is dialling"
    assert lines[1].startswith("agent mesh · up ")
    assert "1 of 30 wanted · 30 desired, 31 tracked" in lines[2]
    assert lines[3].startswith(
        "not full since the daemon started; all tunnels together were missing"
    )
    assert re.fullmatch(r'missing by group: "" 15 \(.+\), east 14 \(.+\)', lines[4])
    assert lines[6] == "1 session · 1 in flight · waiting: 0"
    assert lines[8].split() == [
        *("name", "group", "generation", "desired", "lease", "session", "pid", "held", "by")
    ]
    assert lines[9].startswith("old   east            2  no, 3 is newer      2        1  ")
    assert lines[10].split()[:4] == ["p1", "east", "3", "yes"]
    assert f"{agent.pid}" in lines[10]
    assert "─ events ─" in lines[17]
    assert "lease 3 granted to session 1" in lines[22]
    assert lines[23].startswith("q quit")
    coloured = terminal.screen(colours=True)
    assert "\x1b[32mp1" in coloured
    assert "\x1b[33mp2" in coloured


def test_no_terminal_obeys_what_top_shows(trackd_daemon: Daemon) -> None:
    evil = "\u202egpj\u200b"
    with Tracker(trackd_daemon.endpoint, name=f"a{evil}", labels={"l": evil}) as tracker:
        tracker.track_expected(Proxy(f"p{evil}", f"g{evil}"), Proxy(f"q{evil}"))
        assert tracker.adopt(f"p{evil}")
        with Terminal(
            *TRACKCTL, "--endpoint", trackd_daemon.endpoint, "top", width=160
        ) as terminal:
            screens = [terminal.shows("p\\u202egpj\\u200b")]
            terminal.press("Tab")
            screens.append(terminal.shows("a\\u202egpj\\u200b"))
    for screen in screens:
        assert screen.replace("\n", "").isprintable()


def test_top_is_live(terminal: Terminal, agent: Agent, trackd_daemon: Daemon) -> None:
    assert agent.do("claim", 3, "p2") == "p2"
    terminal.shows("2 of 30 wanted")
    terminal.shows("p2 claimed by lease 3 of session 1")
    with Tracker(trackd_daemon.endpoint, name="late") as tracker:
        tracker.track_expected(Proxy("aaa"))
        terminal.shows("\naaa ")
        terminal.shows("2 sessions")
    terminal.shows("1 session ·")
    trackd_daemon.restart()
    terminal.shows("epoch 2")
    terminal.shows("daemon 0.1.0 started")


def test_keys_sort_filter_and_scroll(terminal: Terminal) -> None:
    terminal.press("f")
    screen = terminal.shows("only missing")
    assert "\np1 " not in screen
    terminal.press("f")
    assert "\np2 " not in terminal.shows("2 of 2 (31 in all) · sort name ▲ · only claimed")
    terminal.press("f")
    terminal.shows("only undesired")
    terminal.press("f")
    terminal.shows("of 31 · sort name")
    terminal.press("r")
    screen = terminal.shows("sort name ▼")
    assert screen.splitlines()[9].startswith("p30 ")
    terminal.press("r", "s", "s")
    screen = terminal.shows("sort generation ▲")
    assert screen.splitlines()[9].startswith("old ")
    terminal.press("NPage")
    terminal.shows("proxies 9-16 of 31")
    terminal.press("End")
    terminal.shows("proxies 24-31 of 31")
    terminal.press("Home", "Down")
    terminal.shows("proxies 2-9 of 31")
    terminal.press("/", "p", "3")
    screen = terminal.shows("/p3_")
    terminal.press("Enter")
    screen = terminal.shows("proxies 1-2 of 2 (31 in all) · sort generation ▲ · /p3 ─")
    assert [line.split()[0] for line in screen.splitlines()[9:11]] == ["p3", "p30"]
    terminal.press("Escape")
    terminal.shows("of 31")


def test_tab_shows_the_agents_and_who_waits(terminal: Terminal, trackd_daemon: Daemon) -> None:
    with Agent(trackd_daemon.endpoint) as waiter, Tracker(trackd_daemon.endpoint) as tracker:
        tracker.set_connection_count(1)
        waiter.tell("wait", 60.0)
        terminal.shows(f"waiting: 1 (pid {waiter.pid} agent {waiter.pid})")
        terminal.press("Tab")
        screen = terminal.shows("agents 1-3 of 3 · sort session")
        row = next(line for line in screen.splitlines()[9:] if f" {waiter.pid} " in line)
        assert row.split()[-3] == "1", "it waits once"
        tracker.set_connection_count(0)
        assert waiter.answer() is not None


def test_top_fits_itself_to_the_terminal(terminal: Terminal) -> None:
    terminal.resize(50, 12)
    wait_until(lambda: len(terminal.screen().split("\n")) == 13)
    screen = terminal.shows("proxies 1-2 of 31")
    assert max(map(len, screen.split("\n"))) <= 50
    terminal.resize(120, 40)
    terminal.shows("proxies 1-24 of 31")


def test_it_stands_still_when_it_is_told_to(terminal: Terminal, agent: Agent) -> None:
    terminal.press("Space")
    terminal.shows("PAUSED")
    assert agent.do("claim", 3, "p2") == "p2"
    terminal.press("r")
    assert "PAUSED" in terminal.shows("sort name ▼")
    terminal.press("Space")
    wait_until(lambda: "PAUSED" not in terminal.screen())
    terminal.shows("2 of 30 wanted")


@pytest.mark.parametrize("keys", ["q", "C-c"])
def test_a_key_ends_it_and_gives_the_terminal_back(terminal: Terminal, keys: str) -> None:
    terminal.press("C-z")  # would leave the shell a terminal without echo
    terminal.press(keys)
    terminal.shows("$")
    is_given_back(terminal)
    terminal.enter("echo code $?")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_gives_the_terminal_back(
    terminal: Terminal, number: signal.Signals
) -> None:
    os.kill(terminal.command_pid(), number)
    wait_until(lambda: terminal.state("#{alternate_on}") == "0")
    terminal.ends()
    terminal.enter("echo code $?")
    terminal.shows(f"code {128 + number}")
    is_given_back(terminal)


def test_a_daemon_that_is_gone_is_told_and_awaited(
    terminal: Terminal, trackd_daemon: Daemon
) -> None:
    trackd_daemon.kill()
    terminal.shows("no answer: no trackd daemon")
    trackd_daemon.start()
    terminal.shows("29 of 30 proxies have no tunnel; 1 agent is dialling")
    terminal.press("q")
    is_given_back(terminal)


def test_a_failure_gives_the_terminal_back_and_is_told(trackd_daemon: Daemon, agent: Agent) -> None:
    broken = (
        "import trackd_client.cli.top.view as view;"
        "view.View.draw = lambda *_: 1 / 0;"
        "from trackd_client.cli import main; main()"
    )
    command = [TRACKCTL[0], "-c", broken, "--endpoint", trackd_daemon.endpoint, "top"]
    with Terminal(*command, height=60) as terminal:
        terminal.shows("ZeroDivisionError")
        wait_until(lambda: terminal.state("#{alternate_on} #{cursor_flag}") == "0 1")
        terminal.ends()
        terminal.enter("stty -a | grep -o ' echo '")
        terminal.shows("\n echo")


def test_without_a_terminal_it_says_what_to_use(trackd_daemon: Daemon) -> None:
    piped = trackctl("--endpoint", trackd_daemon.endpoint, "top")
    assert piped.returncode == 2
    assert "top needs a terminal; proxies, sessions and watch do not" in piped.stderr


def test_a_dead_daemon_is_seen_without_waiting_for_a_reply(trackd_daemon: Daemon) -> None:
    patient = ("--endpoint", trackd_daemon.endpoint, "--timeout", "3600")
    with Terminal(*TRACKCTL, *patient, "top", "--interval", "3600") as terminal:
        terminal.shows("example.com")
        trackd_daemon.kill()
        terminal.shows("no answer: no trackd daemon")
        terminal.press("q")


def test_a_daemon_that_stands_still_is_seen_without_waiting_for_a_reply(
    trackd_daemon: Daemon,
) -> None:
    patient = ("--endpoint", trackd_daemon.endpoint, "--timeout", "3600")
    with Terminal(*TRACKCTL, *patient, "top", "--interval", "0.1") as terminal:
        terminal.shows("example.com")
        with paused(trackd_daemon.pid):
            terminal.shows("no answer: the daemon on")
        terminal.shows("example.com  ")
        terminal.press("q")
