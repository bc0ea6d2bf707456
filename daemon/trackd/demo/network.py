"""A simulated network: a load balancer on loopback TCP, and the proxies behind it.

Nobody can choose which proxy a dial reaches: the balancer picks one at random. The demo's
checks believe the proxies, because only they see every dial and every tunnel. Nothing in
here talks to the daemon, and nothing trusts an agent: what is checked is what proxies saw.

What goes over a connection, line by line:

| who | line | meaning |
| --- | --- | --- |
| agent | `dial NAME` | which agent is calling |
| proxy | `{"principals": […]}` | the names of this proxy, of which one is its gossip name |
| agent | `keep` | its claim succeeded: the tunnel stays |
| agent | `duplicate` | its claim failed: another lease holds this proxy |
| proxy | `{"proxies": […]}` | Teleport's gossip, again and again while the connection is open |

The end of a connection is the end of the tunnel. An agent that leaves closes its sending side, and
the proxy closes in return once it has taken note: after that, the proxy is free for others.
"""

import asyncio
import json
import random
import socket
import uuid
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

GOSSIP_INTERVAL = 0.25  # seconds
PROXY_TTL = 4.0  # seconds that a proxy stays tracked after the last gossip that names it
TCP_ESTABLISHED = 1  # <netinet/tcp.h>, the first byte of TCP_INFO


class Ledger:
    """What the proxies saw, and the judgement: never two kept tunnels at one proxy. No I/O."""

    invariant = "no proxy ever had two tunnels"

    def __init__(self) -> None:
        self.dials: Counter[str] = Counter()
        """Dials by agent."""
        self.duplicates: Counter[str] = Counter()
        """Dials by agent that met a proxy already claimed."""
        self.broken: list[str] = []
        """A sentence for each time that the invariant was broken."""
        self.most_kept = 0
        """The most tunnels that were kept at one time, since `forget_most_kept`."""
        self._kept: dict[str, list[str]] = {}

    def dial(self, agent: str) -> None:
        """An agent dialled and reached a proxy."""
        self.dials[agent] += 1

    def duplicate(self, agent: str) -> None:
        """The proxy that it reached was already claimed."""
        self.duplicates[agent] += 1

    def keep(self, proxy: str, agent: str) -> None:
        """A claim succeeded, and the tunnel stays."""
        holders = self._kept.setdefault(proxy, [])
        holders.append(agent)
        if len(holders) > 1:
            self.broken.append(f"{proxy} has {len(holders)} tunnels: {', '.join(holders)}")
        self.most_kept = max(self.most_kept, self.kept)

    def close(self, proxy: str, agent: str) -> None:
        """A tunnel that was kept is over."""
        holders = self._kept[proxy]
        holders.remove(agent)
        if not holders:
            del self._kept[proxy]

    @property
    def kept(self) -> int:
        """Tunnels that are kept now."""
        return sum(map(len, self._kept.values()))

    def holder(self, proxy: str) -> str | None:
        """The agent that keeps a tunnel to this proxy."""
        return next(iter(self._kept.get(proxy, ())), None)

    def held_by(self, agent: str) -> list[str]:
        """The proxies that an agent keeps tunnels to."""
        return [proxy for proxy, holders in self._kept.items() if agent in holders]

    def forget_most_kept(self) -> None:
        """Starts `most_kept` again, from what is kept now."""
        self.most_kept = self.kept


@dataclass(frozen=True, slots=True, eq=False)
class Proxy:
    """A simulated proxy."""

    name: str
    group: str
    generation: int
    host_id: str
    ttl: float = PROXY_TTL

    def principals(self, cluster: str) -> list[str]:
        """The names that it presents to an agent that dials it.

        Before any gossip the first one decides (rule 7), so it is the one that leads to the name
        which gossip will use.
        """
        return [f"{self.name}.{cluster}", self.host_id, self.name]

    def gossip(self) -> dict[str, object]:
        """What is said of it, in Teleport's words: what is empty or zero is left out."""
        said: dict[str, object] = {"version": "v2", "metadata": {"name": self.name}}
        if self.group:
            said["gid"] = self.group
        if self.generation:
            said["ggen"] = self.generation
        return said | {"ttl": int(self.ttl * 1e9)}


@dataclass(slots=True, eq=False)
class Tunnel:
    """One connection at a proxy, kept or not (yet)."""

    proxy: Proxy
    writer: asyncio.StreamWriter
    agent: str = ""
    kept: bool = False

    @property
    def is_open(self) -> bool:
        """Whether neither side has closed, also when we have not read the end yet."""
        if self.writer.is_closing():
            return False
        connection = self.writer.get_extra_info("socket")
        state: int = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state == TCP_ESTABLISHED


@dataclass(slots=True)
class Network:
    """The load balancer and all proxies. Everything runs in one asyncio loop.

    Attributes:
        cluster: The cluster's name, a suffix of one principal.
        rng: Makes every choice that is left to chance here.
        ledger: What the proxies saw.
        live: The proxies that the balancer may choose and that gossip names.
        draining: Proxies that are neither, and keep what tunnels they have.
        ttl: Seconds that a proxy stays tracked after the last gossip that names it.
    """

    cluster: str
    rng: random.Random
    ledger: Ledger = field(default_factory=Ledger)
    ttl: float = PROXY_TTL
    live: list[Proxy] = field(default_factory=list)
    draining: list[Proxy] = field(default_factory=list)
    _tunnels: set[Tunnel] = field(default_factory=set)
    _server: asyncio.Server | None = None
    _gossiping: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Starts to accept dials and to gossip."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self._gossiping = asyncio.create_task(self._gossip_for_ever())

    async def close(self) -> None:
        """Closes the balancer and every connection."""
        if self._gossiping is not None:
            self._gossiping.cancel()
        if self._server is not None:
            self._server.close()
        self._drop(list(self._tunnels))

    @property
    def address(self) -> str:
        """HOST:PORT of the load balancer."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    @property
    def tunnels(self) -> set[Tunnel]:
        """The tunnels that are kept now."""
        return {tunnel for tunnel in self._tunnels if tunnel.kept}

    def deploy(self, group: str, generation: int, count: int) -> list[Proxy]:
        """Adds proxies; the balancer and gossip know them from now on."""
        new = [
            Proxy(
                name=f"{group}-{generation}-{number:02}",
                group=group,
                generation=generation,
                host_id=str(uuid.UUID(int=self.rng.getrandbits(128), version=4)),
                ttl=self.ttl,
            )
            for number in range(1, count + 1)
        ]
        self.live += new
        return new

    def drain(self, proxies: Iterable[Proxy]) -> None:
        """Makes the balancer and gossip forget these; their tunnels stay."""
        for proxy in proxies:
            self.live.remove(proxy)
            self.draining.append(proxy)

    def remove(self, proxies: Iterable[Proxy]) -> None:
        """Ends draining proxies, and with them their tunnels."""
        gone = set(proxies)
        self.draining = [proxy for proxy in self.draining if proxy not in gone]
        self.restart(gone)

    def restart(self, proxies: Iterable[Proxy]) -> None:
        """Closes all connections of these proxies, which go on as if nothing had been."""
        restarted = set(proxies)
        self._drop([tunnel for tunnel in self._tunnels if tunnel.proxy in restarted])

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.live:
            writer.close()
            return
        tunnel = Tunnel(self.rng.choice(self.live), writer)
        self._tunnels.add(tunnel)
        # A ConnectionError is an agent that was killed; a ValueError is one that talks rubbish.
        with suppress(ConnectionError, ValueError):
            async for line in reader:
                if tunnel not in self._tunnels:  # closed by us, with a line still under way
                    break
                self._hear(tunnel, line.decode().split())
        self._drop([tunnel])

    def _hear(self, tunnel: Tunnel, words: list[str]) -> None:
        match words:
            case ["dial", agent]:
                tunnel.agent = agent
                self.ledger.dial(agent)
                said = {"principals": tunnel.proxy.principals(self.cluster)}
                tunnel.writer.write(json.dumps(said).encode() + b"\n")
            case ["keep"] if not tunnel.kept:
                # An agent that is gone may already have a successor, while its end and the
                # successor's `keep` wait side by side to be read by us.
                self._drop([t for t in self.tunnels if t.proxy is tunnel.proxy and not t.is_open])
                tunnel.kept = True
                self.ledger.keep(tunnel.proxy.name, tunnel.agent)
                tunnel.writer.write(self._gossip())
            case ["duplicate"]:
                self.ledger.duplicate(tunnel.agent)
            case _:
                raise ValueError(words)

    def _drop(self, tunnels: Iterable[Tunnel]) -> None:
        for tunnel in tunnels:
            if tunnel not in self._tunnels:
                continue
            self._tunnels.remove(tunnel)
            if tunnel.kept:
                self.ledger.close(tunnel.proxy.name, tunnel.agent)
            tunnel.writer.close()

    async def _gossip_for_ever(self) -> None:
        while True:
            gossip = self._gossip()
            for tunnel in self.tunnels:
                # An agent that waits for an absent daemon does not read; it gets gossip later.
                if not tunnel.writer.transport.get_write_buffer_size():
                    tunnel.writer.write(gossip)
            await asyncio.sleep(GOSSIP_INTERVAL)

    def _gossip(self) -> bytes:
        said = {"proxies": [proxy.gossip() for proxy in self.live]}
        return json.dumps(said, separators=(",", ":")).encode() + b"\n"
