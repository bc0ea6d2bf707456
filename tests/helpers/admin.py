"""What operators and admins ask of the writer, which can be restarted: no threads, no sockets."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from helpers.writer import AgentOf, Clock, Desk

ROWS = [["p1", "", 1, None], ["p2", "", 1, 20.0], ["q1", "g", 7, None]]
NOBODY = 65534


class World:
    """A daemon that can be restarted, an admin at it, and somebody who is none."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.settings: dict[str, Any] = {}
        self.desk = Desk(directory, self.clock)
        self.admin = AgentOf(1, None, uid=os.geteuid())
        self.agent = AgentOf(2, None, uid=NOBODY)
        for each in (self.admin, self.agent):
            each.ask(self.desk, "open", name=f"agent {each.peer.uid}")

    def restart(self, **settings: Any) -> None:
        self.settings.update(settings)
        self.desk.kill()
        self.desk = Desk(self.directory, self.clock, **self.settings)

    def read(self, op: str, **fields: Any) -> dict[str, Any]:
        reply = self.desk.ask({"op": op, "seq": 10**6, **fields}, self.agent.peer)
        assert reply is not None
        return reply

    def rows(self, of: str) -> list[dict[str, Any]]:
        page = self.read("snapshot", of=of)
        assert page["cursor"] is None
        rows: list[dict[str, Any]] = page["rows"]
        return rows

    def kinds(self, after: int = 0) -> list[str]:
        return [event[3] for event in self.read("log", after=after)["events"]]

    def counted(self, name: str) -> dict[str, float]:
        ((_, _, _, _, samples),) = self.read("metrics", names=[name])["families"]
        return {",".join(labels): value for labels, value in samples if value}

    def timed(self, name: str) -> dict[str, tuple[int, float]]:
        """Return the number and the sum of each histogram of a family that is not empty."""
        ((_, _, _, _, samples),) = self.read("metrics", names=[name])["families"]
        counts = {",".join(labels): (buckets[-1][1], sum_) for labels, buckets, sum_ in samples}
        return {labels: each for labels, each in counts.items() if each[0]}


def claimed(world: World, *principals: str) -> int:
    lease: int = world.agent.ask(world.desk, "try_acquire")["lease"]
    reply = world.agent.ask(world.desk, "claim", lease=lease, principals=list(principals))
    assert reply["claimed"]
    return lease
