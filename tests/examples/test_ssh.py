"""docs/examples/ssh as it stands: three bastions with real sshd behind HAProxy, on loopback."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

import laboratory as example
from helpers import ssh_faults
from helpers.ssh_faults import FAULTS
from helpers.ssh_site import ASYNCSSH, KEEP, Site
from helpers.support import PATIENCE, needed, wait_until
from helpers.trackctl import PLAIN, start_trackctl, trackctl
from laboratory import NAMES, NEEDED, Laboratory
from trackd_client import Tracker
from trackd_client.testing import Daemon

#: Faults that only `make bench-ssh` has: short, they are none, or other tests have them.
LONG = {
    ssh_faults.restart,
    ssh_faults.freeze,
    ssh_faults.drain,
    ssh_faults.suspend_agent,
    ssh_faults.hang,
}
DOCUMENT = Path(example.__file__).parents[2] / "ssh.md"


@pytest.fixture
def programs() -> None:
    """Skip the test where these are missing; in CI, fail."""
    for program, package in NEEDED.items():
        needed(program, package)


@pytest.fixture
def tracker(trackd_daemon: Daemon) -> Iterator[Tracker]:
    with Tracker(trackd_daemon.endpoint) as tracker:
        yield tracker


@pytest.fixture
def laboratory(programs: None) -> Iterator[Laboratory]:
    with tempfile.TemporaryDirectory(prefix="trackd-") as place, Laboratory(Path(place)) as running:
        yield running


@contextmanager
def keeping(daemon: Daemon, laboratory: Laboratory) -> Iterator[subprocess.Popen[str]]:
    """Keep tunnels; `laboratory.log("keep")` is what was said."""
    with laboratory.open_log("keep") as log:
        process = start_trackctl(
            *("--endpoint", daemon.endpoint, "keep", "--", str(laboratory.place / "tunnel.sh")),
            env=PLAIN | laboratory.environ,
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(2 * PATIENCE)
    assert code in {128 + signal.SIGTERM, -signal.SIGKILL}


def claimed(tracker: Tracker) -> list[str]:
    return sorted(row["name"] for row in tracker.rows("leases") if row["name"] is not None)


def test_each_bastion_gets_one_tunnel_and_one_that_restarts_gets_its_own_back(
    trackd_daemon: Daemon, laboratory: Laboratory, tracker: Tracker
) -> None:
    with keeping(trackd_daemon, laboratory):
        wait_until(lambda: claimed(tracker) == list(NAMES), 3 * PATIENCE)
        # Names come from the forced commands, so all are tracked.
        wait_until(lambda: tracker.status()["tracked"] == len(NAMES))
        wait_until(lambda: all(laboratory.logins(name) == 1 for name in NAMES))
        laboratory.stop_bastion("b2")
        wait_until(lambda: "b2" not in claimed(tracker), 3 * PATIENCE)
        laboratory.start_bastion("b2")
        wait_until(lambda: claimed(tracker) == list(NAMES), 3 * PATIENCE)
        wait_until(lambda: laboratory.logins("b2") == 2)
        assert [laboratory.logins(name) for name in NAMES] == [1, 2, 1]
    wait_until(lambda: not any(laboratory.connections(name) for name in NAMES))
    wait_until(lambda: not claimed(tracker))


def test_nobody_dials_for_a_bastion_that_is_terminating(
    trackd_daemon: Daemon, laboratory: Laboratory, tracker: Tracker
) -> None:
    with keeping(trackd_daemon, laboratory):
        wait_until(lambda: claimed(tracker) == list(NAMES), 3 * PATIENCE)
        wait_until(lambda: all(laboratory.logins(name) == 1 for name in NAMES))
        (laboratory.place / "bastions").write_text("b1\nb2 terminating\nb3\n")
        wait_until(lambda: tracker.status()["desired"] == 2)
        laboratory.stop_bastion("b2")
        wait_until(lambda: claimed(tracker) == ["b1", "b3"], 3 * PATIENCE)
        wait_until(lambda: tracker.status()["waiting"] == 1)
        dials = tracker.status()["last_lease"]
        laboratory.start_bastion("b2")
        assert tracker.status()["last_lease"] == dials, "nothing is missing"
        (laboratory.place / "bastions").write_text("b1\nb2\nb3\n")
        wait_until(lambda: claimed(tracker) == list(NAMES), 3 * PATIENCE)


@pytest.mark.usefixtures("programs")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_laboratory_leaves_nothing_however_it_is_ended(number: signal.Signals) -> None:
    terminal, its_end = pty.openpty()  # so that it shows `top`, until it is ended
    with subprocess.Popen(
        [sys.executable, example.__file__],
        stdin=its_end,
        stdout=its_end,
        stderr=subprocess.STDOUT,
        env=PLAIN | {"TERM": "xterm"},
        start_new_session=True,
    ) as process:
        os.close(its_end)
        said = b""
        while b"requests" not in said:  # of `top`
            said += os.read(terminal, 65536)
        found = re.search(rb"log (\S+)/b1.log", said)
        assert found is not None, said
        place = found[1].decode()
        assert processes_of(place)
        process.send_signal(number)
        threading.Thread(target=drain, args=(terminal,), daemon=True).start()
        process.wait(2 * PATIENCE)
    wait_until(lambda: not processes_of(place))
    assert not Path(place).exists()


def drain(terminal: int) -> None:
    """Read what a terminal shows, until nobody has it open."""
    with suppress(OSError):
        while os.read(terminal, 65536):
            pass


def processes_of(place: str) -> list[int]:
    """Return the processes that have a directory on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if place.encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def await_health(site: Site, after: str) -> None:
    """Wait until each bastion has one tunnel, no process is left, and the daemon says the same."""
    looked = time.monotonic()

    def is_healthy() -> bool:
        nonlocal looked
        if site.monitor.last.at <= looked:
            return False  # the monitor has seen nothing new
        looked = site.monitor.last.at
        return not site.list_complaints()

    try:
        wait_until(is_healthy, 6 * PATIENCE)
    except AssertionError:
        logs = "".join(site.log(name)[-3000:] for name in site.running)
        raise AssertionError(f"after {after}: {site.list_complaints()}\n{logs}") from None


@pytest.mark.usefixtures("programs")
def test_after_each_fault_every_bastion_has_one_tunnel_again() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="trackd-") as place,
        Site(Path(place), KEEP, 3, scale=1 / 6, patience=PATIENCE / 4) as site,
    ):
        for fault in FAULTS:
            if fault.happen not in LONG:
                fault.happen(site)
                await_health(site, fault.title)
        assert site.monitor.surplus == 0
    assert not site.list_clients()


@pytest.mark.usefixtures("programs")
def test_the_agent_on_asyncssh_has_one_tunnel_to_each_bastion_after_faults_too() -> None:
    pytest.importorskip("asyncssh")
    with (
        tempfile.TemporaryDirectory(prefix="trackd-") as place,
        Site(Path(place), ASYNCSSH, 3, scale=1 / 6, patience=PATIENCE / 4) as site,
    ):
        for fault in FAULTS:
            if fault.happen in {Site.start_units, ssh_faults.restart, ssh_faults.kill_agent}:
                fault.happen(site)
                await_health(site, fault.title)
        assert site.monitor.surplus == 0
    assert not site.list_clients()


@pytest.mark.usefixtures("programs")
def test_a_balancer_that_goes_by_the_source_is_met_with_many_sources() -> None:
    with (
        tempfile.TemporaryDirectory(prefix="trackd-") as place,
        Site(Path(place), KEEP, 3, patience=PATIENCE / 4) as site,
    ):
        site.edit("haproxy.cfg", "balance random", "balance source")
        site.edit("tunnel.sh", "\nssh -F", f"\n{ssh_with_a_source()} -F")
        site.reload_balancer()
        site.start_units()
        await_health(site, "a cold start")


def ssh_with_a_source() -> str:
    """Return how docs/ssh.md lets ssh dial from another address each time."""
    (found,) = re.findall(r'^ +(ssh -b ".+?") -F', DOCUMENT.read_text(), re.MULTILINE)
    return str(found)


def test_a_tunnel_that_may_not_log_in_says_so_and_its_lease_is_free(
    trackd_daemon: Daemon, laboratory: Laboratory, tracker: Tracker
) -> None:
    (laboratory.place / "id_ed25519.pub").write_text("")
    with keeping(trackd_daemon, laboratory):
        wait_until(lambda: "failed (auth)" in laboratory.log("keep"), 3 * PATIENCE)
    assert not claimed(tracker)


def test_a_host_whose_certificate_another_authority_signed_gets_no_tunnel(
    trackd_daemon: Daemon, laboratory: Laboratory, tracker: Tracker
) -> None:
    other = laboratory.place / "other_ca"
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(other)]
    subprocess.run(make, check=True, timeout=60)
    shutil.copy(f"{other}.pub", laboratory.place / "host_ca.pub")
    with keeping(trackd_daemon, laboratory):
        wait_until(lambda: "failed (auth)" in laboratory.log("keep"), 3 * PATIENCE)
    assert not claimed(tracker)
    assert not any(laboratory.logins(name) for name in NAMES)


@pytest.mark.usefixtures("programs")
def test_the_laboratory_is_one_command_that_leaves_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="trackd-") as place:
        done = subprocess.run(
            [sys.executable, example.__file__],
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE,
            check=False,
            env=PLAIN | {"TMPDIR": place},
        )
        assert (done.returncode, done.stderr) == (0, "")
        shown = done.stdout.partition("export TRACKD_ENDPOINT=")[2]
        assert [line.split()[0] for line in shown.splitlines()[-3:]] == list(NAMES), done.stdout
        assert not list(Path(place).iterdir())


def test_doctor_tells_the_bastions_apart_by_their_host_keys(
    trackd_daemon: Daemon, laboratory: Laboratory
) -> None:
    found: dict[str, str] = {}

    def reaches_all() -> bool:  # once each sshd listens, and the balancer has seen that
        done = trackctl(
            *("--endpoint", trackd_daemon.endpoint, "doctor", "--json"),
            *("--dial", f"127.0.0.1:{laboratory.ports['balancer']}", "--dials=40"),
        )
        found.update({each["check"]: each["said"] for each in json.loads(done.stdout)["findings"]})
        return found.get("dial proxies", "").startswith("40 dials reached 3 different proxies: ")

    wait_until(reaches_all)
    assert found["dial tls"] == "no TLS: the proxies speak SSH"
    said = found["dial proxies"]
    assert "different proxies: sha256:" in said
    assert sum(map(int, re.findall(r"\((\d+)\)", said))) == 40
