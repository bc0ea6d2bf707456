"""The parts of `make demo-fleet` that judge, and that cut off a host. CI runs the demo itself."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from fleet.demo import Cable, FleetLedger
from trackd.demo.scenes import SCENES, verdict
from trackd.demo.view import Played

PASSED = [Played(scene.title, 1.0, 1, 0) for scene in SCENES]


def test_a_host_that_is_cut_off_may_have_one_tunnel_to_what_others_have() -> None:
    ledger = FleetLedger()
    ledger.cut_off = {"agent-1", "agent-2"}
    ledger.keep("p1", "agent-1")
    ledger.keep("p1", "agent-3")
    assert ledger.doubled == ["p1"]
    assert verdict(PASSED, ledger) == 0
    ledger.close("p1", "agent-1")
    assert ledger.doubled == []


def test_no_side_of_a_cut_may_have_two_tunnels_to_a_proxy() -> None:
    for holders in (["agent-1", "agent-2"], ["agent-3", "agent-4"], ["agent-1", "agent-3"] * 2):
        ledger = FleetLedger()
        ledger.cut_off = {"agent-1", "agent-2"}
        for agent in holders:
            ledger.keep("p1", agent)
        assert ledger.broken
        assert verdict(PASSED, ledger) == 1


def test_what_is_healed_may_have_no_two_tunnels() -> None:
    ledger = FleetLedger()
    ledger.keep("p1", "agent-1")
    ledger.keep("p1", "agent-3")
    assert verdict(PASSED, ledger) == 1


def test_a_cable_that_is_cut_holds_everything_back_and_closes_nothing() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async def play() -> None:
        far = await asyncio.start_server(echo, "127.0.0.1", 0)
        cable = Cable()
        (port,) = await cable.open([far.sockets[0].getsockname()[1]])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        cable.cut()
        writer.write(b"two")
        with suppress(TimeoutError):
            raise AssertionError(await asyncio.wait_for(reader.read(3), 0.2))
        cable.mend()
        assert await reader.readexactly(3) == b"two"
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        cable.close()
        far.close()
        if ends := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(ends, timeout=60)

    asyncio.run(play())
