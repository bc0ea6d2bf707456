"""Hosts with networks of their own: namespaces on a bridge, between which routes are cut.

Members of etcd run outside of them, on the address of the bridge. What a host sends to another one
is lost after `cut`: a blackhole route drops it without a word, as a dead link does.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Final, Self

import pytest

from helpers.support import needed

#: The name under which members of etcd are reached.
ETCD: Final = "etcd"
_numbers = itertools.count(1)


class Network:
    """The networks of some hosts; needs root.

    Attributes:
        address: of each host, and of `ETCD`, by name.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._ip = needed("ip", "iproute2")
        # The kernel removes a namespace and its links some time after it was deleted.
        self._tag = f"td{os.getpid() % 100_000}n{next(_numbers)}"
        self._names = list(names)
        subnet = f"10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}"
        self._bridge = f"{subnet}.1/24"
        self.address = {ETCD: f"{subnet}.1"}
        self.address.update({name: f"{subnet}.{i}" for i, name in enumerate(names, 2)})
        self._undo = ExitStack()

    def command(self, name: str) -> list[str]:
        """Return what a command begins with that runs on a host."""
        return [self._ip, "netns", "exec", self._space(name)]

    def cut(self, sender: str, receiver: str) -> None:
        """Lose from now on what one host sends to another."""
        self._on(sender, "route", "add", "blackhole", f"{self.address[receiver]}/32")

    def mend(self, sender: str, receiver: str) -> None:
        """Lose it no more."""
        self._on(sender, "route", "del", "blackhole", f"{self.address[receiver]}/32")

    def __enter__(self) -> Self:
        probe = f"{self._tag}-probe"
        tried = subprocess.run(
            [self._ip, "netns", "add", probe], capture_output=True, text=True, check=False
        )
        if tried.returncode != 0:
            pytest.skip(f"no network namespace here: {tried.stderr.strip()}")
        self._run("netns", "del", probe)
        try:
            self._run("link", "add", self._tag, "type", "bridge")
            self._undo.callback(self._run, "link", "del", self._tag)
            self._run("addr", "add", self._bridge, "dev", self._tag)
            self._run("link", "set", self._tag, "up")
            for number, name in enumerate(self._names):
                self._connect(name, f"{self._tag}v{number}")
        except BaseException:
            self._undo.close()
            raise
        return self

    def _connect(self, name: str, link: str) -> None:
        space = self._space(name)
        self._run("netns", "add", space)
        self._undo.callback(self._run, "netns", "del", space)
        self._run("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space)
        self._run("link", "set", link, "master", self._tag, "up")
        self._on(name, "addr", "add", f"{self.address[name]}/24", "dev", "eth0")
        self._on(name, "link", "set", "eth0", "up")
        self._on(name, "link", "set", "lo", "up")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._undo.close()

    def _space(self, name: str) -> str:
        return f"{self._tag}-{name}"

    def _on(self, name: str, *words: str) -> None:
        self._run("-n", self._space(name), *words)

    def _run(self, *words: str) -> None:
        subprocess.run([self._ip, *words], check=True)
