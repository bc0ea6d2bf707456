"""docs/ssh.md, typed as it stands: three bastions, a balancer and a host, each a booted machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from helpers.support import needed
from systemd.conftest import CLUSTER, commands
from systemd.machine import PACKAGES, REPOSITORY, Machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
]

BASTIONS = ("b1", "b2", "b3")
NAMES = (*BASTIONS, "balancer", "host")
MORE = ("haproxy", "iproute2", "openssh-client", "openssh-server", "socat")
#: The directory of the files, on each machine.
COPY = "/srv/trackd/docs/examples/ssh"
KEY = "/etc/ssh/ssh_host_ed25519_key.pub"


def blocks(heading: str) -> list[str]:
    """Return the blocks of commands of a section of docs/ssh.md."""
    page = (REPOSITORY / "docs/ssh.md").read_text()
    section = re.search(rf"(?ms)^### \d\. {re.escape(heading)}\n(.*?)(?=^##|\Z)", page)
    assert section, f"docs/ssh.md has no section {heading!r}"
    return re.findall(r"(?ms)^```sh\n(.*?)^```", section[1])


def link(*command: str) -> None:
    subprocess.run(["ip", *command], check=True, timeout=60)


@pytest.fixture
def machines(can_boot: None) -> Iterator[dict[str, Machine]]:
    """The machines by their names, in one network; each has host keys of its own."""
    needed("ip", "iproute2")
    bridge = f"td{os.getpid()}"
    found: dict[str, Machine] = {}
    with ExitStack() as stack:
        link("link", "add", bridge, "type", "bridge")
        stack.callback(link, "link", "delete", bridge)
        link("link", "set", bridge, "up")
        hosts = "".join(
            f"10.0.0.{number} {name}.example.com\n" for number, name in enumerate(NAMES, 1)
        )
        for number, name in enumerate(NAMES, 1):
            machine = stack.enter_context(Machine.made("ssh", (*PACKAGES, *MORE)))
            cable = f"{bridge}n{number}"
            link("link", "add", cable, "type", "veth", "peer", "eth0", "netns", str(machine.leader))
            link("link", "set", cable, "master", bridge, "up")
            machine.write("/etc/hosts", f"127.0.0.1 localhost\n{hosts}")
            machine.shell(
                f"ip address add 10.0.0.{number}/24 dev eth0; ip link set eth0 up;"
                "rm /etc/ssh/ssh_host_*; ssh-keygen -q -A; systemctl restart ssh"
            )
            found[name] = machine
        yield found


def test_who_types_the_page_as_it_stands_has_a_tunnel_to_each_bastion(
    machines: dict[str, Machine],
) -> None:
    def at(name: str, script: str) -> str:
        return machines[name].shell(f"cd {COPY}\n{script}")

    def carry(path: str, sender: str, receiver: str, to: str = COPY) -> None:
        here, there = (machines[name].root for name in (sender, receiver))
        shutil.copy(here / path.lstrip("/"), there / to.lstrip("/"))

    host = machines["host"]
    host.shell(commands("Install"))
    host.shell(commands("The first cluster"))

    (make,) = blocks("An authority for the keys of bastions")
    at("host", make)
    sign, serve = blocks("Each bastion")
    for name in BASTIONS:
        carry(KEY, name, "host")
        at("host", sign.replace("b1", name))
        carry(f"{COPY}/ssh_host_ed25519_key-cert.pub", "host", name)
        at(name, serve)

    (balance,) = blocks("The balancer")
    at("balancer", balance)
    *_, look = balance.splitlines()
    machines["balancer"].wait_until(
        lambda: {f"bastions,{name},UP" for name in BASTIONS} <= set(at("balancer", look).split())
    )

    dial, keep, look = blocks("Each host")
    at("host", dial)
    own = (host.root / "etc/trackd/ssh/id_ed25519.pub").read_text()
    for name in BASTIONS:
        at(name, f"echo '{own.strip()}' >>~tunnel/.ssh/authorized_keys")
    at("host", keep)
    host.run("trackctl", "--cluster", CLUSTER, "wait", "--timeout", "60")
    said = at("host", look)
    assert "all 3 proxies have a tunnel" in said
    assert "20 dials reached 3 different proxies" in said
    assert "all is well" in said
    key = (host.root / KEY.lstrip("/")).read_text().split()[1]
    for name in BASTIONS:
        assert key in at(name, "ssh-keyscan -t ed25519 -p 2222 127.0.0.1"), "it leads to the host"
