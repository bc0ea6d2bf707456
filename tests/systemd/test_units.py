"""The units, in a booted systemd: what an operator and the agents of a host can rely on."""

from __future__ import annotations

import json
import re
import subprocess
import time
from itertools import pairwise

import pytest

from systemd.conftest import CLUSTER
from systemd.machine import CHECKOUT, PYTHON, REPOSITORY, Agent, Machine

# Each is a matter of seconds; the first one may have to build the machine.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(480),
    pytest.mark.usefixtures("clean"),
]

#: The exposure that `systemd-analyze security` may report, at most.
EXPOSURE = 0.8
PING = (
    "import sys; from trackd_client import Tracker\n"
    "with Tracker(cluster=sys.argv[1]) as t: t.ping()"
)
LOOK = """
import http.client, socket, sys
where, path = sys.argv[1:]
connection = http.client.HTTPConnection("localhost" if "/" in where else where, 9440)
try:
    if "/" in where:
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(where)
    connection.request("GET", path)
    response = connection.getresponse()
    print(response.status, response.read().decode(), end="")
except OSError as error:
    print(type(error).__name__)
"""
#: Prints whether the daemon greets a subscriber to its events.
GREETED = """
import sys, zmq
with zmq.Context() as context, context.socket(zmq.SUB) as socket:
    socket.linger = 0
    socket.subscribe(b"")
    socket.connect(f"ipc://{sys.argv[1]}")
    print(bool(socket.poll(5000)))
"""
SET_COUNT = (
    "import sys; from trackd_client import Tracker\n"
    "with Tracker(cluster=sys.argv[1]) as t: t.set_connection_count(int(sys.argv[2]))"
)


def ping(
    machine: Machine, cluster: str = CLUSTER, user: str = "inside"
) -> subprocess.CompletedProcess[str]:
    return machine.run(PYTHON, "-c", PING, cluster, user=user, check=False)


def answers(machine: Machine, cluster: str = CLUSTER) -> bool:
    return ping(machine, cluster).returncode == 0


def restarts(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "NRestarts"))


def main_pid(machine: Machine, unit: str) -> int:
    return int(machine.show(unit, "MainPID"))


# --- the units themselves ----------------------------------------------------------------------


def test_systemd_finds_nothing_wrong_with_the_units(machine: Machine) -> None:
    units = (
        f"trackd@{CLUSTER}.service",
        f"trackd@{CLUSTER}.socket",
        f"trackd-lead@{CLUSTER}.service",
    )
    machine.drop_in("trackd@.service", (REPOSITORY / "systemd/relay.conf").read_text())
    ran = machine.run("systemd-analyze", "verify", *units)
    assert ran.stdout + ran.stderr == ""


def test_the_service_is_hardly_exposed(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    unit = f"trackd@{CLUSTER}.service"

    def exposure() -> float:
        out = machine.run("systemd-analyze", "security", "--no-pager", unit).stdout
        found = re.search(r"Overall exposure level for \S+: (\S+)", out)
        assert found, out
        return float(found[1])

    shipped = exposure()
    machine.drop_in("trackd@.service", (REPOSITORY / "systemd/http-over-tcp.conf").read_text())
    with capsys.disabled():
        print(f"\nexposure as shipped: {shipped}; with HTTP over TCP: {exposure()}")
    assert shipped <= EXPOSURE


def look(machine: Machine, where: str, path: str, user: str = "root") -> str:
    """Return status and text of what HTTP answers in the machine, or why it does not."""
    return machine.run(PYTHON, "-c", LOOK, where, path, user=user, check=False).stdout


def test_with_the_drop_in_http_is_served_on_loopback(machine: Machine, socket: str) -> None:
    machine.write("/etc/trackd/trackd.toml", 'http = "localhost:9440"\n')
    assert answers(machine), "the unit as shipped has no network; agents are served"
    service = socket.replace(".socket", ".service")
    told = " ".join(entry["MESSAGE"] for entry in machine.journal("--unit", service))
    assert "cannot serve HTTP on localhost:9440" in told
    assert "http-over-tcp.conf" in told
    machine.drop_in("trackd@.service", (REPOSITORY / "systemd/http-over-tcp.conf").read_text())
    machine.run("systemctl", "restart", service)
    for host in ("127.0.0.1", "::1"):
        assert look(machine, host, "/readyz", "outside") == "200 ready\n"
    assert 'trackd_desired_proxies{cluster="example.com"} 0.0' in look(
        machine, "127.0.0.1", "/metrics", "outside"
    )


def test_without_it_http_is_served_on_a_unix_socket_to_the_group(
    machine: Machine, socket: str
) -> None:
    path = f"/run/trackd/{CLUSTER}/http.sock"
    settings = f'http = "unix:{path}"\nsocket_mode = "0660"\n'
    machine.write(f"/etc/trackd/{CLUSTER}.toml", settings)
    service = socket.replace(".socket", ".service")
    for _ in range(2):
        machine.run("systemctl", "restart", service)
        assert look(machine, path, "/readyz", "inside") == "200 ready\n"
    assert "<title>trackd</title>" in look(machine, path, "/", "inside")
    assert "PermissionError" in look(machine, path, "/readyz", "outside")
    machine.run("systemctl", "stop", socket)
    assert machine.run("ls", f"/run/trackd/{CLUSTER}").stdout.count("http") == 0


# --- starting ----------------------------------------------------------------------------------


def test_the_first_request_of_an_agent_starts_the_daemon_and_is_answered(
    machine: Machine, socket: str
) -> None:
    service = socket.replace(".socket", ".service")
    assert machine.show(service, "ActiveState") == "inactive"
    ran = ping(machine)
    assert ran.returncode == 0, ran.stderr
    # It is active once it has removed what an earlier failed start would have left.
    machine.wait_until(lambda: machine.show(service, "ActiveState") == "active")
    (started,) = (
        e for e in machine.journal("--unit", service) if e["MESSAGE"].startswith("serving ")
    )
    assert started["TRACKD_ACTIVATED"] == "true"


def test_a_started_service_has_answered_a_request_and_says_how_things_are(
    machine: Machine, service: str, agents: list[Agent]
) -> None:
    assert machine.show(service, "StatusText") == "claimed 0 of 0 desired, 0 in flight, 0 sessions"
    machine.drop_in("trackd@.service", "[Service]\nWatchdogSec=6\n")
    machine.run("systemctl", "restart", service)
    agents.append(Agent(machine, CLUSTER, "a"))
    machine.wait_until(
        lambda: re.fullmatch(
            r"claimed [12] of 3 desired, [01] in flight, 1 sessions",
            machine.show(service, "StatusText"),
        )
    )


def test_the_service_is_a_user_without_capabilities(machine: Machine, service: str) -> None:
    status = machine.run("cat", f"/proc/{main_pid(machine, service)}/status").stdout
    uid = machine.run("id", "-u", "trackd").stdout.strip()
    assert re.search(rf"(?m)^Uid:(\t{uid}){{4}}$", status)
    for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb"):
        assert re.search(rf"(?m)^Cap{kind}:\t0+$", status), kind
    assert re.search(r"(?m)^NoNewPrivs:\t1$", status)
    assert re.search(r"(?m)^Seccomp:\t2$", status)


@pytest.mark.parametrize("cluster", ["two words/$HOME-ü%i", "-dash", ".dot", 'quo"te\\x'])
def test_a_name_with_unusual_characters_is_escaped_as_systemd_does(
    machine: Machine, cluster: str
) -> None:
    unit = machine.run("systemd-escape", "--template=trackd@.socket", "--", cluster).stdout.strip()
    machine.run("systemctl", "start", unit)
    ran = ping(machine, cluster)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(machine.run("trackctl", f"--cluster={cluster}", "status", "--json").stdout)
    assert told["cluster"] == cluster


def test_two_instances_know_nothing_of_each_other(
    machine: Machine, service: str, agents: list[Agent]
) -> None:
    machine.run("systemctl", "start", "trackd@other.example.socket")
    agents.append(Agent(machine, CLUSTER, "a"))
    assert machine.status("other.example")["tracked"] == 0
    agents.append(Agent(machine, "other.example", "a"))
    machine.run("systemctl", "stop", service.replace(".service", ".socket"))
    agents[1].go_on()
    assert machine.status("other.example")["sessions"] == 1


# --- ending and coming back --------------------------------------------------------------------


def start_agents(machine: Machine, agents: list[Agent]) -> None:
    agents.extend(Agent(machine, CLUSTER, f"agent{number}") for number in range(3))


def nothing_was_lost_or_run_twice(machine: Machine, agents: list[Agent]) -> None:
    """Compare what the agents were granted with what the daemon granted."""
    for agent in agents:
        agent.go_on()
    status = machine.status(CLUSTER)
    assert status["sessions"] == len(agents)
    granted = [lease for agent in agents for lease in agent.end()]
    assert sorted(granted) == list(range(1, len(granted) + 1))
    status = machine.status(CLUSTER)
    assert (status["last_lease"], status["inflight"], status["claimed"]) == (len(granted), 0, 0)


def test_a_restart_loses_nothing(machine: Machine, service: str, agents: list[Agent]) -> None:
    start_agents(machine, agents)
    for _ in range(3):
        machine.run("systemctl", "restart", service)
        agents[0].go_on()
    assert machine.status(CLUSTER)["epoch"] == 4
    nothing_was_lost_or_run_twice(machine, agents)


def test_a_kill_loses_nothing(machine: Machine, service: str, agents: list[Agent]) -> None:
    start_agents(machine, agents)
    for count in range(1, 4):
        machine.kill(main_pid(machine, service))
        machine.wait_until(lambda: restarts(machine, service) == count)  # noqa: B023
        agents[0].go_on()
    nothing_was_lost_or_run_twice(machine, agents)


@pytest.mark.parametrize("part", ["actor", "store", "mailbox"])
def test_the_watchdog_restarts_a_daemon_with_a_wedged_part_and_nothing_is_lost(
    machine: Machine, socket: str, agents: list[Agent], part: str
) -> None:
    service = socket.replace(".socket", ".service")
    flag = f"/run/trackd/{CLUSTER}/wedge"
    program = f"{PYTHON} {CHECKOUT}/tests/systemd/wedge.py {part} {flag}"
    machine.drop_in(
        "trackd@.service",
        f"[Service]\nWatchdogSec=6\nExecStart=\nExecStart=:{program} run --cluster-name=%I\n",
    )
    start_agents(machine, agents)
    machine.run("touch", flag)
    agents[0].go_on()
    assert restarts(machine, service) == 1
    told = [e["MESSAGE"] for e in machine.journal("--unit", service)]
    assert any("Watchdog timeout" in line for line in told), told
    assert any("Fatal Python error: Aborted" in line for line in told), "no traceback"
    nothing_was_lost_or_run_twice(machine, agents)
    assert restarts(machine, service) == 1


def test_twenty_crashes_in_a_row_neither_loop_hot_nor_end_in_a_failure(
    machine: Machine, service: str, agents: list[Agent]
) -> None:
    start_agents(machine, agents)
    began, last = time.monotonic(), 0
    for _ in range(20):
        machine.wait_until(lambda: main_pid(machine, service) not in {0, last})  # noqa: B023
        last = main_pid(machine, service)
        machine.kill(last)
    machine.wait_until(lambda: restarts(machine, service) == 20)
    agents[0].go_on()
    assert time.monotonic() - began >= 20, "a start a second, at most"
    for unit in (service, service.replace(".service", ".socket")):
        machine.wait_until(lambda: machine.show(unit, "ActiveState") == "active")  # noqa: B023
    nothing_was_lost_or_run_twice(machine, agents)


def waits(machine: Machine) -> list[int]:
    """Return the seconds that the service waits before its next start, when it does."""
    file = f"/run/trackd/{CLUSTER}/backoff"
    return [int(text) for text in machine.run("cat", file, check=False).stdout.split()]


def test_a_daemon_that_cannot_start_is_tried_again_more_and_more_slowly(
    machine: Machine, socket: str
) -> None:
    service = socket.replace(".socket", ".service")
    machine.write("/etc/trackd/trackd.toml", "proxy_expiry = false\n")
    knocking = machine.start(
        PYTHON, "-c", PING.replace("sys.argv[1]", "sys.argv[1], timeout=100"), CLUSTER
    )
    machine.wait_until(lambda: waits(machine) >= [8])
    assert machine.show(socket, "ActiveState") == "active"
    errors = [e for e in machine.journal("--unit", service) if "proxy_expiry" in e["MESSAGE"]]
    moments = [int(each["__REALTIME_TIMESTAMP"]) / 1e6 for each in errors]
    pauses = [later - earlier for earlier, later in pairwise(moments)]
    assert len(pauses) >= 2
    assert all(pause >= least for pause, least in zip(pauses, (2, 4, 8), strict=False)), pauses
    assert {e["PRIORITY"] for e in errors} == {"3"}, "a start error is an error in the journal"
    machine.write("/etc/trackd/trackd.toml", "")
    assert knocking.communicate(timeout=100) is not None
    assert knocking.returncode == 0, "the request waited, and was answered in the end"
    machine.wait_until(lambda: waits(machine) == [])


def test_a_person_who_has_corrected_the_file_does_not_wait(machine: Machine, socket: str) -> None:
    service = socket.replace(".socket", ".service")
    machine.write("/etc/trackd/trackd.toml", "proxy_expiry = false\n")
    machine.run("systemctl", "start", "--no-block", service)
    machine.wait_until(lambda: waits(machine) >= [16])
    machine.write("/etc/trackd/trackd.toml", "")
    failed = restarts(machine, service)
    machine.run("systemctl", "restart", service)
    assert answers(machine)
    assert restarts(machine, service) <= failed, "it was this start"


def test_a_stopped_service_comes_back_with_the_next_request_and_a_stopped_socket_does_not(
    machine: Machine, service: str
) -> None:
    machine.run("systemctl", "stop", service)
    assert machine.show(service, "ActiveState") == "inactive"
    assert answers(machine)
    machine.run("systemctl", "stop", service.replace(".service", ".socket"))
    assert machine.show(service, "ActiveState") == "inactive", "its socket takes it along"
    ran = ping(machine)
    assert "no such socket" in ran.stderr
    assert machine.run("ls", f"/run/trackd/{CLUSTER}").stdout, "the state is kept"
    machine.run("systemctl", "clean", "--what=runtime", service)
    assert machine.run("ls", "/run/trackd").stdout == ""
    assert machine.show(service, "ActiveState") == "inactive"


def test_the_socket_keeps_its_mode_and_its_group_over_restarts(
    machine: Machine, service: str
) -> None:
    path = f"/run/trackd/{CLUSTER}/trackd.sock"
    looks = ("stat", "--format=%a %U %G %i", path)
    before = machine.run(*looks).stdout
    assert before.startswith("660 trackd trackd ")
    machine.run("systemctl", "restart", service)
    machine.run("systemctl", "stop", service)
    assert machine.run(*looks).stdout == before
    machine.run("systemctl", "stop", service.replace(".service", ".socket"))
    machine.drop_in("trackd@.socket", "[Socket]\nSocketGroup=inside\n")
    machine.run("systemctl", "start", service)
    assert machine.run(*looks).stdout.startswith("660 trackd inside ")
    assert answers(machine)


def test_state_outlives_a_restart_but_not_the_boot(
    machine: Machine, service: str, agents: list[Agent]
) -> None:
    agents.append(Agent(machine, CLUSTER, "a"))
    machine.run("systemctl", "restart", service)
    assert machine.status(CLUSTER)["epoch"] == 2
    agents[0].end()
    machine.power_off()
    machine.boot()
    assert machine.run("find", f"/run/trackd/{CLUSTER}").stdout.splitlines() == [
        f"/run/trackd/{CLUSTER}",
        f"/run/trackd/{CLUSTER}/trackd.sock",
    ]
    told = machine.status(CLUSTER)
    assert (told["epoch"], told["tracked"], told["last_lease"]) == (1, 0, 0)


# --- who may do what ---------------------------------------------------------------------------


def test_only_members_of_the_group_can_connect(machine: Machine, service: str) -> None:
    assert ping(machine, user="inside").returncode == 0
    refused = ping(machine, user="outside")
    assert refused.returncode != 0
    assert "may not open the socket" in refused.stderr


def test_a_socket_that_somebody_deletes_is_served_again_and_the_agents_stay(
    machine: Machine, service: str, agents: list[Agent]
) -> None:
    agents.append(Agent(machine, CLUSTER, "stays"))
    path = f"/run/trackd/{CLUSTER}/trackd.sock"
    machine.run("rm", path)
    looks = ("stat", "--format=%a %U %G", path)
    machine.wait_until(lambda: machine.run(*looks, check=False).stdout == "660 trackd trackd\n")
    agents[0].go_on()
    machine.run("systemctl", "restart", service)
    assert machine.run(*looks).stdout == "660 trackd trackd\n"
    agents[0].go_on()
    agents.append(Agent(machine, CLUSTER, "comes"))
    told = machine.journal("--unit", service)
    (entry,) = [each for each in told if "restart the socket unit" in each["MESSAGE"]]
    assert entry["PRIORITY"] == "3"
    machine.run("systemctl", "restart", service.replace(".service", ".socket"))
    assert answers(machine)
    assert machine.status(CLUSTER)["claimed"] >= 2, "what each agent keeps, and its passing claims"


def test_members_of_the_socket_s_group_hear_of_changes_and_nobody_else(
    machine: Machine, service: str
) -> None:
    path = f"/run/trackd/{CLUSTER}/trackd.sock.events"
    looks = ("stat", "--format=%a %U %G", path)
    assert machine.run(*looks).stdout == "660 trackd trackd\n"
    assert machine.run(PYTHON, "-c", GREETED, path, user="inside").stdout == "True\n"
    assert machine.run(PYTHON, "-c", GREETED, path, user="outside").stdout == "False\n"
    machine.run("systemctl", "stop", service.replace(".service", ".socket"))
    machine.drop_in("trackd@.socket", "[Socket]\nSocketGroup=inside\n")
    machine.drop_in("trackd@.service", "[Service]\nGroup=inside\n")
    machine.run("systemctl", "start", service)
    assert machine.run(*looks).stdout == "660 trackd inside\n"


def test_a_member_of_the_group_cannot_do_what_is_admin_s(machine: Machine, socket: str) -> None:
    machine.write("/etc/trackd/trackd.toml", 'count_role = "admin"\n')
    refused = machine.run(PYTHON, "-c", SET_COUNT, CLUSTER, "2", user="inside", check=False)
    assert "PermissionRefused" in refused.stderr
    machine.run(PYTHON, "-c", SET_COUNT, CLUSTER, "2")
    assert machine.status(CLUSTER)["connection_count"] == 2
    for command in ("stop", "reload", "restart"):
        unit = socket.replace(".socket", ".service")
        assert machine.run("systemctl", command, unit, user="inside", check=False).returncode != 0


def test_a_killed_agent_of_any_user_is_noticed_by_the_kernel_in_spite_of_all_hardening(
    machine: Machine, service: str, agents: list[Agent]
) -> None:
    agents.append(Agent(machine, CLUSTER, "mine"))
    agents.append(Agent(machine, CLUSTER, "root's", user="root"))
    for agent in agents:
        machine.kill(agent.pid)
    machine.wait_until(lambda: machine.status(CLUSTER)["sessions"] == 0)
    ended = [
        e for e in machine.journal("--unit", service) if e.get("TRACKD_EVENT") == "session ended"
    ]
    assert {int(e["TRACKD_PID"]) for e in ended[-2:]} == {agent.pid for agent in agents}
    # Without a visible process they would have ended 30 seconds later, for no heartbeat.
    assert {e["TRACKD_REASON"] for e in ended[-2:]} == {"process_exited"}


# --- reload and log ----------------------------------------------------------------------------


def test_a_reload_changes_what_can_and_says_what_cannot(machine: Machine, service: str) -> None:
    pid = main_pid(machine, service)
    machine.write("/etc/trackd/trackd.toml", "proxy_expiry = 7\nclaim_timeout = 9\n")
    machine.run("systemctl", "reload", service)
    machine.wait_until(lambda: machine.status(CLUSTER)["proxy_expiry"] == 7)
    machine.wait_until(lambda: machine.show(service, "ActiveState") == "active")
    machine.wait_until(
        lambda: machine.show(service, "StatusText").endswith("not reloaded: claim_timeout")
    )
    (refused,) = (e for e in machine.journal("--unit", service) if e.get("TRACKD_SETTING"))
    assert refused["TRACKD_SETTING"] == "claim_timeout"
    assert refused["TRACKD_REASON"] == "leases were granted with the old one"
    assert refused["PRIORITY"] == "4"
    machine.write("/etc/trackd/trackd.toml", "proxy_expiry = false\n")
    refused_reload = machine.run("systemctl", "reload", service, check=False)
    assert refused_reload.returncode != 0
    assert machine.show(service, "ActiveState") == "active"
    told = " ".join(e["MESSAGE"] for e in machine.journal("--unit", service))
    assert "nothing was changed: " in told
    machine.wait_until(lambda: "refused, see the log" in machine.show(service, "StatusText"))
    assert machine.status(CLUSTER)["proxy_expiry"] == 7
    assert main_pid(machine, service) == pid


def test_the_file_of_the_cluster_wins_over_that_of_all(machine: Machine, socket: str) -> None:
    machine.write("/etc/trackd/trackd.toml", "connection_count = 1\n")
    machine.write(f"/etc/trackd/{CLUSTER}.toml", "connection_count = 2\n")
    assert machine.status(CLUSTER)["connection_count"] == 2
    machine.run("systemctl", "start", "trackd@other.socket")
    assert machine.status("other")["connection_count"] == 1


def test_the_journal_has_fields_and_priorities(
    machine: Machine, socket: str, agents: list[Agent]
) -> None:
    machine.write("/etc/trackd/trackd.toml", 'log_level = "debug"\n')
    agents.append(Agent(machine, CLUSTER, "a"))
    entries = machine.journal("--unit", socket.replace(".socket", ".service"))
    claims = [e for e in entries if e.get("TRACKD_OPERATION") == "claim"]
    assert claims
    claim = claims[0]
    assert claim["MESSAGE"].startswith("request operation=claim session=")
    assert claim["TRACKD_PROXY"] == "a-0"
    assert int(claim["TRACKD_LEASE"]) == int(claim["TRACKD_SESSION"]) == 1
    assert claim["TRACKD_CLAIMED"] == "true"
    assert claim["PRIORITY"] == "7"
    assert claim["SYSLOG_IDENTIFIER"] == "trackd"


def test_a_message_larger_than_a_datagram_reaches_the_journal(machine: Machine) -> None:
    code = (
        "import logging; from trackd.host import logs\n"
        "handler = logs.JournalHandler(); log = logging.getLogger('trackd')\n"
        "log.addHandler(handler)\n"
        "log.error('large', extra=logs.fields(value='x' * 3_000_000))"
    )
    machine.run(PYTHON, "-c", code)
    (entry,) = machine.journal("TRACKD_EVENT=large")
    assert len(entry["TRACKD_VALUE"]) == 3_000_000
    assert entry["PRIORITY"] == "3"
