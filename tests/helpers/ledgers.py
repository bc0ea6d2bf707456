"""Agents as processes that record what they were told, and a judge that compares it.

A daemon is here whatever has an endpoint: one on a host, or the leader of a fleet.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from typing import Any, NamedTuple

from helpers.support import RawPeer, wait_until
from trackd_client.errors import Code

PROCESSES = 4
AGENTS_EACH = 4
NAMES = 24

#: Runs agents, one a thread, each with a session of its own, and keeps a ledger for each. A line
#: on standard input has them stop between two calls and tell; the next one lets them go on.
AGENTS = """
import json, os, random, sys, threading, traceback
from trackd_client import Proxy, Tracker
from trackd_client.errors import AcquireTimeout, DaemonAbsent, NoAnswer

endpoint, seed, count, names = sys.argv[1], *map(int, sys.argv[2:])
gate = threading.Condition()
running, resting = True, 0

class Agent(threading.Thread):
    def __init__(self, number):
        super().__init__(daemon=True)
        self.chance = random.Random(f"{seed}.{number}")
        self.lost = []
        self.tracker = Tracker(
            endpoint, timeout=60, name=f"agent {seed}.{number}", on_session_lost=self.lost.append
        )
        self.held = {}      # leases that the daemon granted and that were not released: the name
        self.leases = {}
        self.granted = []   # every id that was ever granted
        self.refused = 0
        self.calls = 0

    def take(self, lease):
        if lease is None:
            self.refused += 1
            return
        self.granted.append(lease.id)
        self.leases[lease.id] = lease
        self.held[lease.id] = lease.claimed_name

    def call(self):
        name = f"p{self.chance.randrange(names)}"
        some = self.chance.choice(sorted(self.held)) if self.held else None
        calls = ("acquire", "try", "claim", "claim", "release", "adopt", "gossip")
        match self.chance.choice(calls):
            case "acquire":
                try:
                    self.take(self.tracker.acquire(timeout=self.chance.choice((0.0, 0.01, 0.05))))
                except (AcquireTimeout, DaemonAbsent, NoAnswer):
                    self.refused += 1
            case "try":
                self.take(self.tracker.try_acquire())
            case "claim" if some is not None and self.held[some] is None:
                if self.leases[some].claim(name):
                    self.held[some] = self.leases[some].claimed_name
            case "release" if some is not None:
                self.leases.pop(some).release()
                del self.held[some]
            case "adopt" if self.chance.random() < 0.3:
                self.take(self.tracker.adopt(name))
            case "gossip" if self.chance.random() < 0.3:
                self.tracker.track_expected(Proxy(name, generation=2**64 - 1, ttl=600.0))
            case _:
                return
        self.calls += 1

    def run(self):
        try:
            self.work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)  # so that the test hears of it

    def work(self):
        global resting
        while True:
            with gate:
                if not running:
                    resting += 1
                    gate.notify_all()
                    gate.wait_for(lambda: running)
                    resting -= 1
            self.call()

agents = [Agent(number) for number in range(count)]
for agent in agents:
    agent.start()
for line in sys.stdin:
    with gate:
        running = False
        gate.wait_for(lambda: resting == count)
        print(json.dumps([
            [agent.tracker._conversation.session.token.hex(), agent.held, agent.granted,
             agent.calls, agent.refused, len(agent.lost)] for agent in agents
        ]), flush=True)
    sys.stdin.readline()
    with gate:
        running = True
        gate.notify_all()
"""


class Ledger(NamedTuple):
    """What an agent knows from the replies that it received."""

    token: str
    held: dict[int, str | None]
    granted: list[int]
    calls: int
    refused: int
    lost: int


class Workers:
    """A process of agents."""

    def __init__(self, endpoint: str, seed: int) -> None:
        self._popen = subprocess.Popen(
            [
                sys.executable,
                "-c",
                AGENTS,
                endpoint,
                str(seed),
                str(AGENTS_EACH),
                str(NAMES),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def rest(self) -> None:
        """Have the agents stop once their calls are answered."""
        assert self._popen.stdin is not None
        print("rest", file=self._popen.stdin, flush=True)

    def ledgers(self) -> list[Ledger]:
        """Return what they know, once they rest."""
        assert self._popen.stdout is not None
        line = self._popen.stdout.readline()
        assert line, "the agents died"
        return [
            Ledger(token, {int(lease): name for lease, name in held.items()}, *rest)
            for token, held, *rest in json.loads(line)
        ]

    def go_on(self) -> None:
        assert self._popen.stdin is not None
        print("go on", file=self._popen.stdin, flush=True)

    def end(self) -> None:
        with self._popen:
            self._popen.kill()


class Judge:
    """Compares what the agents recorded with what the daemon says."""

    def __init__(self, endpoint: str) -> None:
        self.peer = RawPeer(endpoint).open()
        self.ledgers: list[Ledger] = []

    def status(self) -> dict[str, Any]:
        return self.peer.request("status")

    def compare(self, ledgers: list[Ledger]) -> None:
        self.ledgers = ledgers
        granted = list(itertools.chain.from_iterable(ledger.granted for ledger in ledgers))
        assert len(granted) == len(set(granted)), "a lease id was granted twice"
        held = {lease: name for ledger in ledgers for lease, name in ledger.held.items()}
        claimed = [name for name in held.values() if name is not None]
        assert len(claimed) == len(set(claimed)), "a proxy was claimed by two"
        in_flight = len(held) - len(claimed)
        # Grants of calls that were given up are taken back while the agents rest.
        wait_until(lambda: self.status()["inflight"] == in_flight and not self.status()["waiting"])
        status = self.status()
        assert status["claimed"] == len(claimed)
        assert status["sessions"] == PROCESSES * AGENTS_EACH + 1
        assert status["last_lease"] >= max(granted, default=0)
        for number in range(NAMES):
            answer = self.peer.request("is_claimed", principals=[f"p{number}"])
            assert answer["claimed"] == (f"p{number}" in claimed), f"p{number}"
        for lease in granted:
            reply = self.peer.request("release", lease=lease)
            if lease in held:
                assert reply["error"] == Code.NOT_OWNER, f"lease {lease} is nobody's"
            else:
                assert reply["released"] is False, f"lease {lease} was released"
        assert not any(ledger.lost for ledger in ledgers), "a session was lost"
