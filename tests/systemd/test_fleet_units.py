"""The units of a fleet in a booted systemd: a candidate, the relay of an agent host, and etcd."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fleet.etcd_program import etcd_program
from systemd.conftest import CLUSTER
from systemd.machine import CHECKOUT, REPOSITORY, Machine

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LEAD = f"trackd-lead@{CLUSTER}.service"
RELAY = f"trackd@{CLUSTER}.service"
#: Seconds for what may take a term, and a start.
LONG = 240.0
ETCD = """
[Service]
ExecStart=/usr/local/bin/etcd --data-dir=/var/lib/etcd \
  --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 \
  --listen-peer-urls=http://127.0.0.1:2380 --initial-advertise-peer-urls=http://127.0.0.1:2380 \
  --initial-cluster=default=http://127.0.0.1:2380
"""
CANDIDATE = """
[fleet]
etcd_endpoints = ["127.0.0.1:2379"]
listen = "127.0.0.1:7717"
leader_ttl = 3
key_file = "/etc/trackd/keys/control-1.key"
hosts_dir = "/etc/trackd/hosts"
"""
HOST = """
[fleet]
leaders = ["control-1=127.0.0.1:7717"]
leaders_dir = "/etc/trackd/leaders"
key_file = "/etc/trackd/keys/agent-1.key"
"""
SET_UP = f"""
make --directory {CHECKOUT} install EXTRAS=daemon,cli,fleet
install -d -m 755 /etc/trackd/keys /etc/trackd/hosts /etc/trackd/leaders /etc/trackd/lead
trackd keys make control-1 --out /etc/trackd/keys
trackd keys make agent-1 --out /etc/trackd/keys
chown trackd /etc/trackd/keys/*.key
install -m 644 /etc/trackd/keys/control-1.pub /etc/trackd/leaders/
install -m 644 /etc/trackd/keys/agent-1.pub /etc/trackd/hosts/
"""


def status(machine: Machine) -> str:
    return machine.show(LEAD, "StatusText")


def main_pid(machine: Machine) -> str:
    return machine.show(LEAD, "MainPID")


def answers(machine: Machine) -> bool:
    command = ("trackctl", "--cluster", CLUSTER, "status", "--json")
    return machine.run(*command, check=False).returncode == 0


def test_a_candidate_and_a_relay_live_under_their_units(bare_machine: Machine) -> None:
    machine = bare_machine
    machine.shell(SET_UP)
    shutil.copy(etcd_program(), Path(machine.root, "usr/local/bin/etcd"))
    machine.write("/etc/systemd/system/etcd.service", ETCD)
    machine.write(f"/etc/trackd/lead/{CLUSTER}.toml", CANDIDATE)
    machine.write(f"/etc/trackd/{CLUSTER}.toml", HOST)
    machine.drop_in("trackd@.service", (REPOSITORY / "systemd/relay.conf").read_text())

    ran = machine.run("systemd-analyze", "verify", LEAD, RELAY)
    assert ran.stdout + ran.stderr == ""

    # It stands by, and is ready, before there is an etcd.
    machine.run("systemctl", "start", LEAD)
    assert status(machine) == "standing by"
    machine.run("systemctl", "start", "--no-block", "etcd.service")
    machine.wait_until(lambda: status(machine).startswith("leading, term "), LONG)
    machine.run("systemctl", "enable", "--now", f"trackd@{CLUSTER}.socket")
    machine.wait_until(lambda: answers(machine), LONG)
    assert machine.status(CLUSTER)["cluster"] == CLUSTER

    pid = main_pid(machine)
    machine.run("systemctl", "reload", LEAD)
    machine.run("systemctl", "reload", RELAY)
    said = " ".join(entry["MESSAGE"] for entry in machine.journal("--unit", LEAD))
    assert "reload" in said
    assert main_pid(machine) == pid

    # A term that is over: the process ends with 6 when it wakes, and leads again without a pause.
    term = status(machine)
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", LEAD)
    machine.shell("sleep 8")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=CONT", LEAD)
    machine.wait_until(
        lambda: status(machine).startswith("leading, term ") and status(machine) != term, LONG
    )
    assert main_pid(machine) != pid
    assert machine.show(LEAD, "Result") == "success"
    assert machine.run("ls", f"/run/trackd-lead/{CLUSTER}").stdout.count("backoff") == 0
    machine.wait_until(lambda: answers(machine), LONG)

    machine.run("systemctl", "stop", LEAD)
    assert machine.show(LEAD, "Result") == "success"
