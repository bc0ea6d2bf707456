"""The unit for `trackctl keep` of docs/examples, in a booted systemd."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from systemd.conftest import CLUSTER
from systemd.machine import Machine

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
]

UNIT = "trackd-keep@outside.service"
#: The user is the instance; it is in no group of the daemon's but by the unit.
USER = "outside"
NAMES = {"p1", "p2"}
#: Claims the proxy that is missing, leaves a process in a session of its own, and serves.
SCRIPT = """#!/bin/bash
setsid sleep infinity &
echo "${TRACKD_TARGET:-p1}" >&3
proxy='{"metadata":{"name":"%s"},"trackd":{"address":"%s:1"}}'
while printf '{"proxies":['"$proxy,$proxy"']}\\n' p1 p1 p2 p2; do
  sleep 1
done
"""


@pytest.fixture
def keep(machine: Machine, clean: None, service: str) -> Iterator[None]:
    """The unit, installed and running."""
    machine.write("/etc/trackd/keep/outside", SCRIPT)
    machine.write(
        "/etc/trackd/keep/outside.env",
        f"TRACKD_ENDPOINT=ipc:///run/trackd/{CLUSTER}/trackd.sock\n",
    )
    machine.shell(
        "chmod 755 /etc/trackd/keep/outside;"
        "install -m 644 /usr/local/share/doc/trackd/examples/trackd-keep@.service"
        " /etc/systemd/system; systemctl daemon-reload;"
        f"systemctl enable --now --quiet {UNIT}"
    )
    yield
    machine.shell(
        f"systemctl disable --now --quiet {UNIT};"
        "rm -r /etc/trackd/keep /etc/systemd/system/trackd-keep@.service"
    )


def processes(machine: Machine) -> dict[int, str]:
    """Return the command lines of the user's processes."""
    told = machine.shell(
        f'for each in /proc/[0-9]*; do if [ "$(stat -c %U "$each" 2>&1)" = {USER} ]; then'
        ' echo "${each#/proc/} $(tr "\\0" " " 2>&1 <"$each/cmdline")"; fi; done'
    )
    found = (line.partition(" ") for line in told.splitlines())
    return {int(pid): command for pid, _, command in found}


def claimed(machine: Machine) -> list[str]:
    rows = machine.run("trackctl", "--cluster", CLUSTER, "leases", "--json").stdout
    return sorted(row["name"] or "" for row in json.loads(rows)["leases"])


def has_one_tunnel_to_each(machine: Machine) -> bool:
    """Tell whether there is one tunnel to each proxy, and of each run all that belongs to it."""
    commands = list(processes(machine).values())
    left = sum("sleep infinity" in command for command in commands)
    scripts = sum("/keep/outside" in each and "trackctl" not in each for each in commands)
    return claimed(machine) == sorted(NAMES) and (left, scripts) == (len(NAMES), len(NAMES))


def main_pid(machine: Machine) -> int:
    return int(machine.show(UNIT, "MainPID"))


@pytest.mark.usefixtures("keep")
def test_the_unit_keeps_one_tunnel_to_each_proxy_and_leaves_nothing(machine: Machine) -> None:
    verified = machine.run("systemd-analyze", "verify", UNIT)
    assert verified.stdout + verified.stderr == ""
    machine.wait_until(lambda: has_one_tunnel_to_each(machine))
    first = set(processes(machine))
    (script,) = [
        pid for pid, command in processes(machine).items() if command.startswith("/bin/bash")
    ][:1]
    machine.kill(script)
    machine.wait_until(lambda: script not in processes(machine) and has_one_tunnel_to_each(machine))
    assert int(machine.show(UNIT, "NRestarts")) == 0, "a run that ends ends nothing else"

    machine.kill(main_pid(machine))
    machine.wait_until(lambda: int(machine.show(UNIT, "NRestarts")) == 1)
    machine.wait_until(lambda: has_one_tunnel_to_each(machine))
    assert not first & set(processes(machine)), "nothing is left of what the first one started"
    assert machine.status(CLUSTER)["sessions"] == 1

    machine.run("systemctl", "stop", UNIT)
    assert processes(machine) == {}
    status = machine.status(CLUSTER)
    assert (status["sessions"], status["claimed"], status["inflight"]) == (0, 0, 0)
    assert machine.show(UNIT, "ActiveState") == "inactive"
    assert machine.show(UNIT, "Result") == "success"


@pytest.mark.usefixtures("keep")
def test_the_unit_waits_for_a_daemon_that_is_away(machine: Machine, service: str) -> None:
    machine.wait_until(lambda: has_one_tunnel_to_each(machine))
    machine.run("systemctl", "stop", service, service.replace(".service", ".socket"))
    machine.run("systemctl", "restart", UNIT)
    machine.wait_until(lambda: int(machine.show(UNIT, "NRestarts")) >= 1)
    machine.run("systemctl", "start", service.replace(".service", ".socket"))
    machine.wait_until(lambda: has_one_tunnel_to_each(machine))
