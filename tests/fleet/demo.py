"""`make demo-fleet`: a fleet of three agent hosts on etcd, against simulated proxies, in scenes.

All of it runs on this machine: three members of etcd, two candidates, and for each agent host a
relay and agents, each host with keys of its own and a cable that can be cut. Agents, proxies and
checks are those of `trackd demo`. It is here, and not in the daemon, since it needs etcd, which the
tests get. Settings are the defaults, so that the seconds it prints are those to expect.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import secrets
import sys
import tempfile
import time
from asyncio import StreamReader, StreamWriter, get_running_loop
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

from fleet.cluster import Cluster, free_ports
from trackd.config import exits
from trackd.demo.children import Child
from trackd.demo.network import Ledger, Network
from trackd.demo.scenes import GROUPS, Play, Scene, all_leave, present
from trackd.demo.stage import CLUSTER, Counts, SceneFailedError, Stage
from trackd.demo.view import open_view
from trackd.fleet.etcd import EtcdError
from trackd.fleet.keys import make_keys

CANDIDATES = 2
HOSTS = 3
PATIENCE = 180.0  # seconds for each scene: a busy machine takes several times longer
HEAL_TIME = 5.0  # seconds after healing within which the surplus has to close
PROXY_TTL = 60.0  # seconds; longer than nobody leads
WATCH_TIME = 1.0  # seconds to see that nothing closes that should stay


class Cable:
    """What connects a host with the candidates: a port of its own for each of them.

    When it is cut, nothing comes through and nothing is closed, as in a network that is cut.
    """

    def __init__(self) -> None:
        self._whole = asyncio.Event()
        self._whole.set()
        self._servers: list[asyncio.Server] = []

    async def open(self, targets: Iterable[int]) -> list[int]:
        """Listen, and return for each port the one that leads to it."""
        ports = []
        for target in targets:

            async def carry(
                reader: StreamReader, writer: StreamWriter, target: int = target
            ) -> None:
                await self._carry(reader, writer, target)

            server = await asyncio.start_server(carry, "127.0.0.1", 0)
            self._servers.append(server)
            ports.append(server.sockets[0].getsockname()[1])
        return ports

    def cut(self) -> None:
        """Let nothing through any more."""
        self._whole.clear()

    def mend(self) -> None:
        """Let everything through again, and what was held back first."""
        self._whole.set()

    def close(self) -> None:
        """Listen no more."""
        for server in self._servers:
            server.close()

    async def _carry(self, reader: StreamReader, writer: StreamWriter, target: int) -> None:
        await self._whole.wait()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:  # it does not lead
            writer.close()
            return
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: StreamReader, writer: StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 16):
                await self._whole.wait()
                writer.write(data)
                await writer.drain()
        await self._whole.wait()
        writer.close()


class FleetLedger(Ledger):
    """A ledger that allows one tunnel on each side of a cut: who is cut off keeps his own."""

    invariant = "no proxy ever had two tunnels, but for a host that was cut off"

    def __init__(self) -> None:
        super().__init__()
        self.cut_off: set[str] = set()
        """The agents of a host that is cut off, or was until a moment ago."""

    def keep(self, proxy: str, agent: str) -> None:
        """A claim succeeded, and the tunnel stays."""
        known = len(self.broken)
        super().keep(proxy, agent)
        holders = self._kept[proxy]
        inside = sum(holder in self.cut_off for holder in holders)
        if inside <= 1 and len(holders) - inside <= 1:
            del self.broken[known:]

    @property
    def doubled(self) -> list[str]:
        """The proxies that have more than one tunnel."""
        return [proxy for proxy, holders in self._kept.items() if len(holders) > 1]


@dataclass(slots=True)
class Host:
    """An agent host.

    Attributes:
        name: the one of its key.
        endpoint: where its relay serves agents.
        config: the file of the relay's settings.
        cable: to the candidates.
        relay: its process.
        agents: those that run.
    """

    name: str
    endpoint: str
    config: Path
    cable: Cable
    relay: Child
    agents: list[Child] = field(default_factory=list)


class FleetStage(Stage):
    """The stage: members, candidates, hosts, and the network. It looks from the first host.

    Attributes:
        cluster: the members of etcd.
        hosts: the agent hosts.
        candidates: the processes, by their names.
        figures: a line for each thing that was measured.
    """

    def __init__(self, directory: Path, network: Network, cluster: Cluster) -> None:
        super().__init__(directory, network)
        self.cluster = cluster
        self.hosts: list[Host] = []
        self.candidates: dict[str, Child] = {}
        self.figures: list[str] = []
        self._etcd = cluster.client()

    @property
    def _endpoint(self) -> str:
        return self.hosts[0].endpoint

    async def start_fleet(self) -> None:
        """Make the keys, start candidates and relays, and return when there is a leader."""
        directory = self._directory
        keys, admitted, pinned = (directory / name for name in ("keys", "hosts", "leaders"))
        for each in (keys, admitted, pinned):
            each.mkdir()
        candidates = [f"control-{number}" for number in range(1, CANDIDATES + 1)]
        hosts = [f"host-{number}" for number in range(1, HOSTS + 1)]
        for names, known in ((candidates, pinned), (hosts, admitted)):
            for name in names:
                public = make_keys(name, keys).public_file
                (known / public.name).write_bytes(public.read_bytes())
        ports = free_ports(CANDIDATES)
        members = ", ".join(f'"{endpoint}"' for endpoint in self.cluster.endpoints)
        for name, port in zip(candidates, ports, strict=True):
            (directory / f"{name}.toml").write_text(
                f'cluster_name = "{CLUSTER}"\nstate_dir = "{directory}/{name}"\n[fleet]\n'
                f'etcd_endpoints = [{members}]\nlisten = "127.0.0.1:{port}"\n'
                f'key_file = "{keys}/{name}.key"\nhosts_dir = "{admitted}"\n'
            )
            self.start_candidate(name)
        for name in hosts:
            cable = Cable()
            leaders = ", ".join(
                f'"{candidate}=127.0.0.1:{port}"'
                for candidate, port in zip(candidates, await cable.open(ports), strict=True)
            )
            endpoint, config = f"ipc://{directory}/{name}.sock", directory / f"{name}.toml"
            config.write_text(
                f'cluster_name = "{CLUSTER}"\nendpoint = "{endpoint}"\nstate_dir = ""\n[fleet]\n'
                f'leaders = [{leaders}]\nleaders_dir = "{pinned}"\nkey_file = "{keys}/{name}.key"\n'
            )
            relay = self._trackd(name, "run", config)
            self.hosts.append(Host(name, endpoint, config, cable, relay))
        await self.until("the fleet answers", lambda _counts: True)

    def start_candidate(self, name: str) -> None:
        """Start a candidate, as its unit would after its end."""
        self.candidates[name] = self._trackd(name, "lead", self._directory / f"{name}.toml")

    def start_on(self, host: Host) -> None:
        """Start one more agent on a host."""
        host.agents.append(self.start_agent(host.endpoint))

    def start_relay(self, host: Host) -> None:
        """Start the relay of a host again."""
        host.relay = self._trackd(host.name, "run", host.config)

    async def kill_host(self, host: Host) -> None:
        """Kill the relay and all agents of a host; the relay cannot tell that they end."""
        host.relay.kill()
        for agent in host.agents:
            await self.kill_agent(agent)
        host.agents.clear()

    async def leader(self) -> str:
        """Return the name of the candidate that leads, as etcd has it; empty without one."""

        def ask() -> str:
            patience_ends = monotonic() + PATIENCE
            while True:
                try:
                    found = self._etcd.range(f"trackd/1/{CLUSTER}/leader".encode()).kvs
                    break
                except EtcdError:  # the member that was asked is the one that was killed
                    if monotonic() > patience_ends:
                        raise
                    time.sleep(0.1)
            return found[0].value.decode().partition(" ")[0] if found else ""

        return await get_running_loop().run_in_executor(None, ask)

    def busiest(self) -> Host:
        """Return the host with the most tunnels, but for the one that we look from."""
        return max(self.hosts[1:], key=lambda host: len(self.held_by(host)))

    def held_by(self, host: Host) -> list[str]:
        """Return the proxies that the agents of a host keep tunnels to."""
        held_by = self.network.ledger.held_by
        return [proxy for agent in host.agents for proxy in held_by(agent.name)]

    def _trackd(self, name: str, command: str, config: Path) -> Child:
        return Child(
            name,
            [sys.executable, "-m", "trackd", command, "--config", str(config)],
            self._directory / f"{name}.log",
        )

    def _expected(self) -> list[Child]:
        for name, candidate in [*self.candidates.items()]:
            if candidate.exit_code == exits.DEPOSED:
                self.figures.append(f"{name}: its term was over, and it was started again")
                self.start_candidate(name)
        relays = [host.relay for host in self.hosts if host.relay.exit_code is None or host.agents]
        running = [each for each in self.candidates.values() if each.exit_code != -9]
        return [*super()._expected(), *relays, *running]

    async def close(self) -> None:
        """Stop everything that runs: agents, relays, candidates."""
        for host in self.hosts:
            host.cable.mend()
        await super().close()
        await self._stop([host.relay for host in self.hosts])
        await self._stop([*self.candidates.values()])
        for host in self.hosts:
            host.cable.close()
        self._etcd.close()


@dataclass(frozen=True, slots=True)
class FleetScenes:
    """The scenes of a fleet, each of which returns the seconds that it took to converge."""

    stage: FleetStage
    ledger: FleetLedger

    def all(self) -> list[Scene]:
        """Return them in their order."""
        return [
            Scene("cold start of three hosts", self.cold_start),
            Scene("the leader is killed", self.leader_killed),
            Scene("etcd's leader is killed", self.etcd_leader_killed),
            Scene("a host is killed, and comes back", self.host_killed),
            Scene("a host is cut off, and heals", self.host_cut_off),
            Scene("all agents leave", all_leave),
        ]

    async def cold_start(self, play: Play) -> float:
        """Agents of three hosts, which know nothing, find every proxy once."""
        stage = self.stage
        await stage.start_fleet()
        play.show(f"{await stage.leader()} leads, and {len(stage.hosts)} hosts have their relays")
        for number, group in enumerate(GROUPS):
            share = len(range(number, play.proxies, len(GROUPS)))
            play.network.deploy(group, generation=1, count=share)
        start = monotonic()
        for number in range(play.agents):
            stage.start_on(stage.hosts[number % len(stage.hosts)])
        play.show(f"{play.agents} agents start, and know of no proxy; there are {play.proxies}")
        await self._all_there(play, play.agents)
        return self._note("cold start to a tunnel to every proxy", start)

    async def leader_killed(self, play: Play) -> float:
        """The leader is killed; the next one goes on where it was, and no tunnel closes."""
        stage, untouched = self.stage, self._at_work(play)
        before, epoch = await stage.leader(), stage.epoch
        start = monotonic()
        stage.candidates[before].kill()
        play.show(f"{before} is killed while it leads and {len(untouched)} tunnels are open")
        await stage.until("another leads", lambda _counts: stage.epoch > epoch)
        self._note("leader killed: first reply of the next leader", start)
        play.show(f"{await stage.leader()} leads after {monotonic() - start:.1f} s")
        await self._all_there(play, play.agents)
        seconds = self._note("leader killed: a tunnel to every proxy", start)
        self._check_open(play, untouched)
        stage.start_candidate(before)
        return seconds

    async def etcd_leader_killed(self, play: Play) -> float:
        """The member of etcd that leads is killed; the fleet pauses, and goes on."""
        stage = self.stage
        before = await stage.leader()
        member = await get_running_loop().run_in_executor(None, stage.cluster.leader)
        untouched = self._at_work(play)
        start = monotonic()
        member.kill()
        play.show(f"member {member.number} of etcd is killed, which led; two are left")
        await self._all_there(play, play.agents)
        seconds = self._note("etcd's leader killed: a tunnel to every proxy", start)
        self._check_open(play, untouched)
        after = await stage.leader()
        play.show(f"{after} leads {'on' if after == before else 'now'}; the member starts again")
        member.start()
        return seconds

    async def host_killed(self, play: Play) -> float:
        """A host is killed; the others hold its proxies after host_ttl, and nothing else closes."""
        stage = self.stage
        lost = stage.busiest()
        held, agents = stage.held_by(lost), len(lost.agents)
        untouched = {each for each in play.network.tunnels if each.proxy.name not in held}
        start = monotonic()
        await stage.kill_host(lost)
        play.show(f"{lost.name} is killed: its relay and {agents} agents, with {len(held)} tunnels")
        await self._all_there(play, play.agents - agents)
        seconds = self._note("host killed: a tunnel to every proxy", start)
        self._check_open(play, untouched)
        stage.start_relay(lost)
        for _ in range(agents):
            stage.start_on(lost)
        play.show(f"the others hold what it held; {lost.name} is back with {agents} agents")
        await self._all_there(play, play.agents)
        return seconds

    async def host_cut_off(self, play: Play) -> float:
        """A host is cut off and keeps its tunnels; when it heals, each proxy has one again."""
        stage, ledger = self.stage, self.ledger
        host = stage.busiest()
        held = stage.held_by(host)
        ledger.cut_off = {agent.name for agent in host.agents}
        untouched = play.network.tunnels
        start = monotonic()
        host.cable.cut()
        play.show(f"{host.name} is cut off from the leader, with {len(held)} tunnels")

        def taken(counts: Counts) -> bool:
            return (
                counts.sessions == play.agents - len(host.agents)
                and set(ledger.doubled) == set(held)
                and counts.claimed == counts.desired == len(play.network.live)
            )

        await stage.until("the others have a tunnel to each of its proxies too", taken)
        self._note("host cut off: the others have a tunnel to each of its proxies", start)
        await stage.pause(WATCH_TIME)
        self._check_open(play, untouched)
        play.show(f"{len(held)} proxies have two tunnels; {host.name} is connected again")
        start = monotonic()
        host.cable.mend()
        while ledger.doubled:
            if monotonic() > stage.deadline:
                raise SceneFailedError(f"two tunnels still: {', '.join(ledger.doubled)}")
            await asyncio.sleep(0.01)
        seconds = self._note("host connected again: no proxy has two tunnels", start)
        if seconds > HEAL_TIME:
            raise SceneFailedError(f"the surplus closed after {seconds:.1f} s, not {HEAL_TIME} s")
        await self._all_there(play, play.agents)
        ledger.cut_off = set()
        return seconds

    async def _all_there(self, play: Play, sessions: int) -> None:
        await self.stage.until(
            f"there are {sessions} sessions, and every proxy has one tunnel",
            lambda counts: (
                counts.sessions == sessions
                and play.is_full_mesh(counts)
                and not self.ledger.doubled
            ),
        )

    def _at_work(self, play: Play) -> set[object]:
        """Let some proxies drop their tunnels, so that agents are at work; return the others."""
        network = play.network
        network.restart(network.rng.sample(network.live, max(1, play.proxies // 4)))
        return {*network.tunnels}

    def _check_open(self, play: Play, untouched: Iterable[object]) -> None:
        if lost := {*untouched} - play.network.tunnels:
            raise SceneFailedError(f"{len(lost)} tunnels were closed though their proxies lived")

    def _note(self, what: str, start: float) -> float:
        seconds = monotonic() - start
        self.stage.figures.append(f"{what}: {seconds:.2f} s")
        return seconds


async def perform(args: argparse.Namespace, cluster: Cluster) -> int:
    """Set the stage, play all scenes, and print what was measured; return the exit code."""
    ledger, rng = FleetLedger(), random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="trackd-demo-") as directory:
        network = Network(CLUSTER, rng, ledger, ttl=PROXY_TTL)
        stage = FleetStage(Path(directory), network, cluster)
        scenes = FleetScenes(stage, ledger).all()
        view = open_view(stage, [scene.title for scene in scenes], plain=args.plain)
        view.show(
            f"{args.agents} agents on {HOSTS} hosts, {args.proxies} proxies, seed {args.seed}"
        )
        play = Play(stage, view.show, args.agents, args.proxies)
        code = await present(play, view, scenes, PATIENCE)
    print("\n".join(stage.figures))
    return code


def main() -> int:
    """Read the command line, start etcd, and play; return 0 when every check held."""
    parser = argparse.ArgumentParser(prog="make demo-fleet", description=__doc__)
    parser.add_argument("--agents", type=int, default=6, help="agent processes, at least 3 [6]")
    parser.add_argument("--proxies", type=int, default=12, help="proxies, at least 3 [12]")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10_000))
    parser.add_argument("--plain", action="store_true", help="lines instead of a live display")
    args = parser.parse_args()
    if args.agents < HOSTS or args.proxies < HOSTS:
        parser.error(f"there are {HOSTS} hosts: give at least as many agents, and proxies")
    cluster = Cluster()
    for member in cluster.members:  # no member outlives the demo, either
        member.command[:0] = [sys.executable, "-m", "trackd.demo.children", str(os.getpid())]
    with cluster:
        return asyncio.run(perform(args, cluster))


if __name__ == "__main__":
    sys.exit(main())
