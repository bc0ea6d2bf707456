"""Rule 16 from gossip to the dial: what clients and commands are given."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from pathlib import Path

import pytest

from helpers.trackctl import trackctl
from trackd_client import AsyncTracker, Proxy, Target, Tracker
from trackd_client.core.arguments import proxy_rows
from trackd_client.core.discovery import parse_discovery
from trackd_client.core.lease import _target_of
from trackd_client.errors import BadArgument
from trackd_client.testing import Daemon

pytestmark = pytest.mark.rule(16)


def test_a_lease_has_a_target_and_its_claim_succeeds(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1", address="10.0.0.1:3024"), Proxy("p2"))
        lease, other = tracker.try_acquire(), tracker.try_acquire()
        assert lease is not None
        assert other is not None
        assert lease.target == Target("p1", "10.0.0.1:3024")
        assert other.target is None
        assert lease.claim("p1")
        (row,) = (row for row in tracker.rows("proxies") if row.name == "p1")
        assert row.address == "10.0.0.1:3024"


def test_an_asyncio_client_is_given_the_same(trackd_daemon: Daemon) -> None:
    async def run() -> Target | None:
        async with AsyncTracker(trackd_daemon.endpoint) as tracker:
            await tracker.track_expected(Proxy("p1", address="10.0.0.1:3024"))
            lease = await tracker.acquire(timeout=20.0)
            return lease.target

    assert asyncio.run(run()) == Target("p1", "10.0.0.1:3024")


@pytest.mark.parametrize(
    "target", [None, "p1", {}, {"name": "p1"}, {"name": 1, "address": "a:1"},
               {"name": "p1", "address": "-x"}, {"name": "p1", "address": ""}],
)  # fmt: skip
def test_what_is_no_target_is_none(target: object) -> None:
    """An older daemon sends none, and a strange one is not believed."""
    assert _target_of({"lease": 1, "target": target}) is None


def test_an_address_is_sent_only_when_it_says_something() -> None:
    proxies = [Proxy("p1"), Proxy("p2", address=""), Proxy("p3", "", 1, 5.0, False, "a:1")]
    assert proxy_rows(proxies) == [
        ["p1", "", 0, None],
        ["p2", "", 0, None, {"address": ""}],
        ["p3", "", 1, 5.0, {"terminating": False, "address": "a:1"}],
    ]
    with pytest.raises(BadArgument, match="'a b' is no address of 'p1'"):
        proxy_rows([Proxy("p1", address="a b")])


@pytest.mark.parametrize(
    ("said", "address"), [('"a:1"', "a:1"), ('""', ""), ("7", None), ('"a b"', None)]
)
def test_teleports_json_may_say_an_address(said: str, address: str | None) -> None:
    entry = f'{{"metadata": {{"name": "p1"}}, "trackd": {{"address": {said}}}}}'
    (proxy,) = parse_discovery(f'{{"proxies": [{entry}]}}')
    assert proxy.address == address


def test_a_command_finds_the_target_in_its_environment(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    found = tmp_path / "found"
    command = partial(trackctl, "--endpoint", trackd_daemon.endpoint)
    with Tracker(trackd_daemon.endpoint) as tracker:
        command("gossip", "--names", "p1", "--ttl", "600", "--address", "10.0.0.1:3024")
        listed = json.loads(command("proxies", "--json").stdout)
        assert [row["address"] for row in listed["proxies"]] == ["10.0.0.1:3024"]
        assert "10.0.0.1:3024, for the next dial of uid" in command("explain", "p1").stdout
        script = f'echo "$TRACKD_TARGET $TRACKD_TARGET_ADDRESS" > {found}'
        command("hold", "--timeout", "20", "--", "sh", "-c", script)
        assert tracker.status().last_lease == 1
    assert found.read_text() == "p1 10.0.0.1:3024\n"
