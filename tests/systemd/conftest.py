"""One machine for all tests: trackd installed as docs/systemd.md says, and users for agents."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from systemd.machine import REPOSITORY, Agent, Machine, why_not

CLUSTER = "example.com"


def commands(heading: str) -> str:
    """Return the commands of a section of docs/systemd.md."""
    page = (REPOSITORY / "docs/systemd.md").read_text()
    section = re.search(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^##|\Z)", page)
    assert section, f"docs/systemd.md has no section {heading!r}"
    return "\n".join(re.findall(r"(?ms)^```sh\n(.*?)^```", section[1]))


@pytest.fixture(scope="session")
def can_boot() -> None:
    """Skip where no machine can be booted, with the reason; in CI that is a failure."""
    if reason := why_not():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this: {reason}")
        pytest.skip(reason)


@pytest.fixture
def bare_machine(can_boot: None) -> Iterator[Machine]:
    """A booted machine with the checkout, where nothing is installed."""
    with Machine.made() as made:
        yield made


@pytest.fixture(scope="session")
def machine(can_boot: None) -> Iterator[Machine]:
    """A booted machine, with trackd installed, nothing running, and users to be agents."""
    with Machine.made() as made:
        made.shell(commands("Install"))
        for user in ("inside", "outside"):
            made.run("useradd", "--no-create-home", user)
        made.run("usermod", "--append", "--groups", "trackd", "inside")
        yield made


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> None:
    """Not judged by processes, as elsewhere: those in a machine end with it."""


@pytest.fixture
def clean(machine: Machine) -> Iterator[None]:
    """Stop what a test started in the machine, and take its drop-ins and configuration away."""
    machine.mark()
    yield
    machine.shell(
        "systemctl stop 'trackd@*.socket' 'trackd@*.service';"
        "systemctl disable --quiet trackd@.socket trackd@.service;"
        "rm -rf /etc/systemd/system/trackd@*.d /run/trackd/*;"
        "rm -f /etc/trackd/*; cp systemd/trackd.toml /etc/trackd/;"
        "systemctl daemon-reload; systemctl reset-failed"
    )


@pytest.fixture
def socket(machine: Machine) -> str:
    """The socket unit of a cluster, enabled and listening; its service does not run yet."""
    unit = f"trackd@{CLUSTER}.socket"
    machine.run("systemctl", "enable", "--now", "--quiet", unit)
    return unit


@pytest.fixture
def service(machine: Machine, socket: str) -> str:
    """The running service of that cluster."""
    unit = socket.replace(".socket", ".service")
    machine.run("systemctl", "start", unit)
    return unit


@pytest.fixture
def agents(machine: Machine) -> Iterator[list[Agent]]:
    """A list for agents, which are ended after the test."""
    started: list[Agent] = []
    yield started
    for agent in started:
        agent.kill()
