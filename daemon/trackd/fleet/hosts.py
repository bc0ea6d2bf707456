"""The hosts of a fleet, as the leader knows them: which connection each has, and who is silent.

Pure. A host is heard of with each frame of its relay. One that is silent for `host_ttl` has died,
or is cut off, as far as anybody can tell. A leader that has just begun knows only which hosts have
sessions, and gives each of them a whole `host_ttl`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Host:
    """A host.

    Attributes:
        name: the one of its key.
        connection: the ROUTER's id of its newest connection; b"" before its first.
        boot: the boot id that its relay has told last; "" before that.
        heard: when it was heard of last, in seconds of the fleet clock.
        listens: whether it is told events, since somebody there listens.
    """

    name: str
    connection: bytes
    boot: str
    heard: float
    listens: bool = False


class Hosts:
    """All hosts that were heard of lately, the one that is silent for longest first.

    Attributes:
        ttl: seconds of silence after which a host is lost.
    """

    def __init__(self, ttl: float) -> None:
        self.ttl = ttl
        self._by_name: dict[str, Host] = {}
        self._by_connection: dict[bytes, Host] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._by_name.values())

    def get(self, name: str) -> Host | None:
        """Return a host, if it was heard of lately."""
        return self._by_name.get(name)

    def expect(self, names: Iterable[str], now: float) -> None:
        """Wait for hosts that have sessions, as if they had been heard of just now."""
        for name in names:
            self._by_name.setdefault(name, Host(name, b"", "", now))

    def here(self, name: str, connection: bytes, boot: str, now: float) -> bool:
        """Take in a host's sign of life; return whether it comes by a new connection or boot."""
        host = self._by_name.get(name)
        if host is not None and host.connection == connection and host.boot == boot:
            self._move(host, now)
            return False
        if host is not None:
            self.drop(name)
        host = self._by_name[name] = self._by_connection[connection] = Host(
            name, connection, boot, now
        )
        return True

    def heard(self, name: str, connection: bytes, now: float) -> Host | None:
        """Take in that a host has sent something; None: not by the connection that counts."""
        host = self._by_connection.get(connection)
        if host is None or host.name != name:
            return None
        self._move(host, now)
        return host

    def has(self, connection: bytes) -> bool:
        """Return whether a host has this connection."""
        return connection in self._by_connection

    def drop(self, name: str) -> None:
        """Forget a host; what is sent to its connection from now on goes nowhere."""
        host = self._by_name.pop(name, None)
        if host is not None:
            self._by_connection.pop(host.connection, None)

    def cut_off(self, name: str) -> None:
        """Let a host's connection count no more; its silence begins with what was heard last."""
        host = self._by_name.get(name)
        if host is not None:
            self._by_connection.pop(host.connection, None)
            host.connection, host.boot, host.listens = b"", "", False

    def silent(self, now: float) -> list[str]:
        """Return the hosts that have been silent for too long.

        Args:
            now: when all that had arrived was read.
        """
        found = []
        for host in self:
            if host.heard + self.ttl >= now:
                break
            found.append(host.name)
        return found

    def next_silent(self) -> float | None:
        """Return when the first host will have been silent for too long; None without hosts."""
        first = next(iter(self), None)
        return None if first is None else first.heard + self.ttl

    def _move(self, host: Host, now: float) -> None:
        del self._by_name[host.name]
        self._by_name[host.name] = host
        host.heard = now
