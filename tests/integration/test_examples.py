"""The examples of the documentation run as they stand, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.balancer import Proxies
from helpers.support import PATIENCE, complaints, needed, wait_until
from trackd_client import Tracker
from trackd_client.testing import Daemon

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ("sync_agent", "async_agent", "threadpool_agent")


@pytest.fixture
def proxies() -> Iterator[Proxies]:
    with Proxies("p1", "p2", "p3") as running:
        yield running
    assert not running.twice, "a proxy has one tunnel"


def run(example: str, daemon: Daemon, proxies: Proxies) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", str(EXAMPLES / f"{example}.py"), proxies.address],
        env={**os.environ, "TRACKD_ENDPOINT": daemon.endpoint},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> str:
    """End an agent, and return what it complained of."""
    process.send_signal(signal.SIGTERM)
    return complaints(process.communicate(timeout=PATIENCE)[1])


@pytest.mark.parametrize("example", NAMES)
def test_an_example_is_short(example: str) -> None:
    assert len((EXAMPLES / f"{example}.py").read_text().splitlines()) < 40


def test_the_unit_that_keeps_tunnels_is_one_that_systemd_understands(tmp_path: Path) -> None:
    unit = tmp_path / "trackd-keep@tunnel.service"
    text = (EXAMPLES / "trackd-keep@.service").read_text()
    command = "/usr/local/bin/trackctl keep --name=%i -- "
    assert command in text
    unit.write_text(text.replace("/usr/local/bin/trackctl", sys.executable))
    done = subprocess.run(
        [needed("systemd-analyze", "systemd"), "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("example", ["async_agent", "threadpool_agent"])
def test_an_agent_with_a_pool_keeps_a_tunnel_to_every_proxy(
    daemon: Daemon, proxies: Proxies, example: str
) -> None:
    process = run(example, daemon, proxies)
    try:
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        proxies.drop("p2")
        wait_until(lambda: proxies.ended == ["p2"])
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
    finally:
        complaints = end(process)
    assert (process.returncode, complaints) == (0, "")
    wait_until(lambda: not proxies.connected())


def test_plain_agents_share_the_proxies_and_a_killed_one_is_replaced(
    daemon: Daemon, proxies: Proxies
) -> None:
    agents = [run("sync_agent", daemon, proxies) for _ in range(4)]
    try:
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
        with Tracker(daemon.endpoint) as operator:
            wait_until(lambda: operator.status()["waiting"] == 1)
        end(agents[0])
        end(agents[1])
        wait_until(lambda: len(proxies.connected()) == 2)
        agents.append(run("sync_agent", daemon, proxies))
        wait_until(lambda: proxies.connected() == ["p1", "p2", "p3"])
    finally:
        for agent in agents:
            if agent.poll() is None:
                end(agent)
    wait_until(lambda: not proxies.connected())
