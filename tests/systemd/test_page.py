"""The page on systemd, from zero to two clusters and an agent, and back to nothing."""

from __future__ import annotations

import pytest

from systemd.conftest import commands
from systemd.machine import CHECKOUT, PYTHON, Agent, Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(480)]

AGENT = f"""\
#!/bin/sh
# Its input never ends, and its output goes to the journal.
exec sleep infinity | exec {PYTHON} {CHECKOUT}/tests/systemd/agent.py example.com tunnel
"""


def next_agent(machine: Machine, before: str) -> str:
    """Wait until the agent's unit runs another process, which has a tunnel; return its pid."""
    unit = "tunnel-agent.service"
    machine.wait_until(lambda: machine.show(unit, "MainPID") not in {"0", before})
    machine.wait_until(lambda: machine.status("example.com")["claimed"])
    return machine.show(unit, "MainPID")


def test_the_page_leads_to_two_clusters_with_an_agent_that_survives_and_back_to_nothing(
    bare_machine: Machine,
) -> None:
    machine = bare_machine
    machine.shell(commands("Install"))
    first = machine.shell(commands("The first cluster"))
    assert first.startswith("example.com ")
    assert "trackctl hold" in machine.run("cat", "/usr/local/share/man/man1/trackctl.1").stdout
    doctor = ("trackctl", "--cluster", "example.com", "doctor")
    well = machine.run(*doctor).stdout
    assert "trackd@example.com.socket: active (" in well
    assert well.endswith("all is well\n")
    stranger = machine.run("runuser", "-u", "nobody", "--", *doctor, check=False)
    assert stranger.returncode == 1
    assert "sudo usermod --append --groups trackd nobody" in stranger.stdout
    second = machine.shell(commands("The second cluster"))
    assert second.startswith("other.example ")

    machine.write("/usr/local/bin/tunnel-agent", AGENT)
    machine.run("chmod", "755", "/usr/local/bin/tunnel-agent")
    machine.shell(commands("An agent"))
    machine.wait_until(lambda: machine.status("example.com")["claimed"])
    agent = machine.show("tunnel-agent.service", "MainPID")
    machine.run("systemctl", "restart", "trackd@example.com.service")
    granted = machine.status("example.com")["last_lease"]
    machine.wait_until(lambda: machine.status("example.com")["last_lease"] > granted)
    assert machine.show("tunnel-agent.service", "MainPID") == agent
    machine.run("systemctl", "stop", "trackd@example.com.socket")
    assert machine.show("tunnel-agent.service", "ActiveState") in {"inactive", "deactivating"}
    ill = machine.run(*doctor, check=False)
    assert ill.returncode == 1
    assert "→ sudo systemctl enable --now trackd@example.com.socket" in ill.stdout
    for act in ("start", "restart"):
        machine.run("systemctl", act, "trackd@example.com.socket")
        agent = next_agent(machine, agent)
    machine.run("rm", "/usr/local/bin/tunnel-agent")

    # A running agent of the second cluster does not keep anything alive either.
    other = Agent(machine, "other.example", "other", user="root")
    machine.shell(commands("Removing"))
    other.kill()
    assert machine.files() - machine.before == set()
    left = machine.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "trackd*")
    assert left.stdout == ""
    for kind in ("passwd", "group"):
        assert machine.run("getent", kind, "trackd", check=False).returncode == 2
