"""The HTTP listener of a real daemon: who is answered, what is refused, that it holds nobody."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from waitress.channel import HTTPChannel

from helpers.hosts import fill, small_disk
from helpers.support import (
    PATIENCE,
    descriptors,
    needed,
    paused,
    processor_seconds,
    seconds_to_stop,
    wait_until,
)
from helpers.web import Site, free_port, path_of, site, unix_site
from trackd.config.settings import load
from trackd.host.own_paths import OwnPaths
from trackd.host.processes import command_of
from trackd.http import listener, views
from trackd.http.listener import HttpListener
from trackd_client import Lease, Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon

#: The labels of a sample that has no others.
OF_CLUSTER = (("cluster", "example.com"),)
PATHS = ("/", "/api/state", "/api/proxies", "/metrics", "/healthz", "/readyz")


@pytest.fixture
def tcp(make_trackd_daemon: MakeDaemon) -> Site:
    return site(make_trackd_daemon)


@pytest.fixture
def unix(make_trackd_daemon: MakeDaemon) -> Site:
    return unix_site(make_trackd_daemon)


def run(*flags: str, cluster: str = "example.com") -> subprocess.CompletedProcess[str]:
    """Run a daemon that is to fail at its start."""
    return subprocess.run(
        [sys.executable, "-m", "trackd", "run", f"--cluster-name={cluster}", *flags],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


# -- who is answered ---------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]", "localhost"])
def test_each_path_is_served_on_loopback(make_trackd_daemon: MakeDaemon, address: str) -> None:
    tcp = site(make_trackd_daemon, f"{address}:{free_port()}")
    for path in PATHS:
        answer = tcp.ask(path, Host=tcp.address)
        assert answer.status == 200, path
        assert answer.body
        assert "Server" not in answer.headers
    assert tcp.ask("/healthz", "HEAD").body == b""
    with Tracker(tcp.daemon.endpoint) as tracker:
        assert tracker.status()["http"] == tcp.address


def test_other_hosts_and_methods_and_paths_are_refused(tcp: Site) -> None:
    assert tcp.ask("/", Host="evil.example").status == 403
    assert tcp.ask("/metrics", Host=f"localhost.evil.example:{tcp.address[-5:]}").status == 403
    answer = tcp.ask("/api/state", "POST")
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD")
    assert tcp.ask("/etc/passwd").status == 404
    assert tcp.ask("/../../etc/passwd").status == 404


def test_the_port_is_reached_through_loopback_alone(tcp: Site) -> None:
    port = int(tcp.address.rpartition(":")[2])
    listening = subprocess.run(["cat", "/proc/net/tcp"], capture_output=True, text=True, check=True)
    local = re.findall(rf"([0-9A-F]{{8}}):{port:04X} 00000000:0000 0A", listening.stdout)
    assert local == ["0100007F"]


def test_a_unix_socket_is_as_private_as_the_daemon_s_and_asks_for_no_host(unix: Site) -> None:
    assert stat.S_IMODE(path_of(unix).stat().st_mode) == 0o600
    for host in ("evil.example", "localhost"):
        assert unix.ask("/readyz", Host=host).status == 200
    with unix.connect() as raw:
        raw.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert raw.makefile("rb").read().endswith(b"\r\n\r\nok\n")


def test_the_socket_s_mode_lets_a_group_in(make_trackd_daemon: MakeDaemon) -> None:
    unix = unix_site(make_trackd_daemon, socket_mode="0660")
    assert stat.S_IMODE(path_of(unix).stat().st_mode) == 0o660
    assert unix.ask("/healthz").status == 200


def test_curl_reads_metrics_from_a_unix_socket(unix: Site) -> None:
    ran = subprocess.run(
        [
            needed("curl", "curl"),
            "--silent",
            "--unix-socket",
            path_of(unix),
            "http://trackd/metrics",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert '\ntrackd_desired_proxies{cluster="example.com"} 0.0\n' in ran.stdout


# -- rubbish, and patience ---------------------------------------------------------------

BAD = {
    "no HTTP": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no version": (b"GET\r\n\r\n", 400),
    "a bad header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
    "two lengths": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        400,
    ),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 403),
    "headers without end": (b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000, 431),
    "a large body": (
        b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\n",
        413,
    ),
}


@pytest.mark.parametrize(("request_", "status"), BAD.values(), ids=BAD)
def test_rubbish_is_answered_and_the_next_is_served(
    tcp: Site, request_: bytes, status: int
) -> None:
    with tcp.connect() as raw:
        raw.sendall(request_)
        first, _, rest = raw.recv(100).partition(b" ")
    assert first in {b"HTTP/1.0", b"HTTP/1.1"}
    assert int(rest[:3]) == status
    assert tcp.ask("/healthz").status == 200
    assert "Traceback" not in tcp.daemon.log.read_text()


def test_clients_that_begin_and_never_end_hold_nobody(tcp: Site) -> None:
    with ExitStack() as slow:
        for _ in range(listener.CONNECTIONS // 2):
            slow.enter_context(tcp.connect()).sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
        reader = slow.enter_context(tcp.connect())
        for _ in range(20):  # and reads none of the answers
            reader.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        began = time.monotonic()
        assert tcp.ask("/").status == 200
        assert tcp.ask("/readyz").status == 200
        assert time.monotonic() - began < PATIENCE / 2
        used = processor_seconds(tcp.daemon.pid)
        with Tracker(tcp.daemon.endpoint) as tracker:
            for _ in range(100):
                tracker.ping()
        assert processor_seconds(tcp.daemon.pid) - used < 1.0, "it spins"


def test_more_connections_than_are_served_wait_and_cost_no_more_descriptors(tcp: Site) -> None:
    with ExitStack() as held:
        for _ in range(listener.CONNECTIONS + 50):
            held.enter_context(tcp.connect())
        with Tracker(tcp.daemon.endpoint) as tracker:
            tracker.ping()
        assert descriptors(tcp.daemon.pid) < listener.CONNECTIONS + 60
    assert tcp.ask("/healthz").status == 200, "once the others have gone"


@pytest.fixture
def own(trackd_daemon: Daemon) -> Iterator[tuple[HttpListener, Site]]:
    """A listener in this process, a client of a real daemon, to be stopped or broken."""
    address = f"127.0.0.1:{free_port()}"
    flags = {"cluster_name": "x", "endpoint": trackd_daemon.endpoint, "http": address}
    made = HttpListener(load(flags, {}, None), lambda *_: None, OwnPaths())
    made.start()
    yield made, Site(trackd_daemon, address)
    assert made.stop(PATIENCE)


def test_a_request_that_comes_byte_by_byte_is_given_up(
    own: tuple[HttpListener, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 1)
    _, tcp = own
    with tcp.connect() as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
        wait_until(lambda: not takes(slow))


def test_answers_that_nobody_takes_are_given_up(
    own: tuple[HttpListener, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 1)
    made, tcp = own
    with ExitStack() as readers:
        for _ in range(listener.THREADS + 1):
            raw = readers.enter_context(tcp.connect())
            raw.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" * 180)
        wait_until(lambda: any(each.total_outbufs_len for each in connections(made)))
        wait_until(lambda: not connections(made), 3 * PATIENCE)  # responses are paced
        assert tcp.ask("/healthz").status == 200


def connections(made: HttpListener) -> list[HTTPChannel]:
    return [each for each in [*made._map.values()] if isinstance(each, HTTPChannel)]


def takes(slow: socket.socket) -> bool:
    """Send one byte more; tell whether the other side still wants any."""
    slow.settimeout(0.05)
    try:
        slow.sendall(b"x")
        return slow.recv(100) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_it_stops_at_once_while_clients_wait_for_a_daemon_that_is_stopped(
    own: tuple[HttpListener, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tcp = own
    monkeypatch.setattr(listener, "ANSWER_SECONDS", PATIENCE)
    monkeypatch.setattr(made._tracker, "timeout", PATIENCE)
    with paused(tcp.daemon.pid), ExitStack() as clients:
        for path in ("/api/state", "/api/proxies", "/metrics", "/readyz", "/metrics", "/healthz"):
            raw = clients.enter_context(tcp.connect())
            raw.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        began = time.monotonic()
        assert made.stop(PATIENCE)
        assert time.monotonic() - began < PATIENCE / 2, "it waits for no answer"
        wait_until(lambda: not [each for each in threading.enumerate() if "waitress" in each.name])


def test_a_listener_that_fails_says_that_it_has_ended(
    own: tuple[HttpListener, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tcp = own
    ended: list[str] = []
    monkeypatch.setattr(made, "_on_end", lambda name, _thread: ended.append(name))
    made._servers[0].close()
    made._wake.pull_trigger()
    wait_until(lambda: ended == ["HttpListener"])
    with pytest.raises(ConnectionRefusedError):
        tcp.ask("/healthz")


BROKEN = """
import sys
from trackd import cli
from trackd.http.listener import HttpListener
def broken(self): raise RuntimeError("as a test wants it")
HttpListener._hang_up_on_the_slow = broken
sys.exit(cli.main())
"""


def test_the_end_of_the_listener_is_the_end_of_the_daemon(tmp_path: Path) -> None:
    run = [f"--endpoint={tmp_path}/trackd.sock", f"--http=127.0.0.1:{free_port()}"]
    ran = subprocess.run(
        [sys.executable, "-c", BROKEN, "run", "--cluster-name=x", *run],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ran.returncode == 1
    assert "actor ended by itself; the daemon ends actor=HttpListener" in ran.stderr


# -- starting and stopping ---------------------------------------------------------------


def http_problem(daemon: Daemon) -> str:
    """Return why a daemon does not serve HTTP, once it has tried: agents come first."""
    with Tracker(daemon.endpoint, timeout=PATIENCE) as tracker:
        wait_until(lambda: tracker.status().http_problem is not None)
        return str(tracker.status().http_problem)


def test_a_port_that_somebody_has_keeps_no_agent_waiting(
    make_trackd_daemon: MakeDaemon,
) -> None:
    """Agents first: it is logged, shown in `status`, and tried again until it works."""
    with socket.create_server(("127.0.0.1", free_port())) as held:
        address = f"127.0.0.1:{held.getsockname()[1]}"
        daemon = make_trackd_daemon(http=address)
        with Tracker(daemon.endpoint) as tracker:
            assert tracker.adopt("p1")
            problem = f"cannot serve HTTP on {address}: address already in use"
            assert problem in http_problem(daemon)
            wait_until(lambda: "HTTP is not served for now" in daemon.log.read_text())
    with Tracker(daemon.endpoint) as tracker:
        wait_until(lambda: "http_problem" not in tracker.status())
    assert Site(daemon, address).ask("/healthz").status == 200
    assert "Traceback" not in daemon.log.read_text()
    assert daemon.stop() == 0


def test_a_request_without_host_is_answered(tcp: Site) -> None:
    """Health checks of HTTP/1.0 say none; a browser always does."""
    for path in (b"/healthz", b"/metrics"):
        with tcp.connect() as raw:
            raw.sendall(b"GET " + path + b" HTTP/1.0\r\n\r\n")
            assert raw.recv(100).split()[1] == b"200"


def test_those_who_never_end_their_request_keep_nobody_out(tcp: Site) -> None:
    with ExitStack() as slow:
        for _ in range(listener.CONNECTIONS + 50):
            slow.enter_context(tcp.connect()).sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
        began = time.monotonic()
        assert tcp.ask("/healthz").status == 200
        assert time.monotonic() - began < listener.REQUEST_SECONDS / 2, "not by their timeout"


def commits(tracker: Tracker) -> int:
    """Return how many commits the daemon has made."""
    families = {family[0]: family[4] for family in tracker.metrics()["families"]}
    ((_, buckets, _),) = families["trackd_commit_seconds"]
    return int(buckets[-1][1])


def test_a_flood_of_requests_for_metrics_asks_the_daemon_little(tcp: Site) -> None:
    with Tracker(tcp.daemon.endpoint) as tracker:
        stored = commits(tracker)
        before = tracker.status()["requests"]
        began = time.monotonic()
        for _ in range(150):
            assert tcp.ask("/metrics").status == 200
            assert tcp.ask("/readyz").status == 200
        allowed = views.BURST + views.RATE * (time.monotonic() - began)
        assert tracker.status()["requests"] - before <= allowed + 2
        assert commits(tracker) - stored <= allowed + 2, "readiness costs no commit each"


def test_the_daemon_s_own_socket_is_not_one_for_http(tmp_path: Path) -> None:
    ran = run(f"--endpoint={tmp_path}/trackd.sock", f"--http=unix:{tmp_path}/trackd.sock")
    assert ran.returncode == 5
    assert [*tmp_path.iterdir()] == []


def test_a_daemon_that_cannot_start_for_another_reason_leaves_nothing_of_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "trackd.db").mkdir()
    ran = run(f"--endpoint={tmp_path}/trackd.sock", f"--http=unix:{tmp_path}/http.sock")
    assert ran.returncode == 5
    assert "cannot keep state" in ran.stderr
    assert "Traceback" not in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["trackd.db"]


def test_a_path_that_a_daemon_has_or_that_is_no_socket_is_left_alone(
    unix: Site, tmp_path: Path, make_trackd_daemon: MakeDaemon
) -> None:
    def problem(path: Path) -> str:
        daemon = make_trackd_daemon(http=f"unix:{path}")
        said = http_problem(daemon)
        assert daemon.stop() == 0
        return said

    assert f"pid {unix.daemon.pid}" in problem(path_of(unix))
    assert unix.ask("/healthz").status == 200

    (tmp_path / "precious").write_text("precious")
    assert "is a regular file" in problem(tmp_path / "precious")
    assert (tmp_path / "precious").read_text() == "precious"

    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "other"))
        other.listen()
        assert "in use" in problem(tmp_path / "other")
    assert (tmp_path / "other").is_socket()


def test_the_socket_of_a_killed_daemon_is_taken_over_and_a_clean_stop_removes_it(
    unix: Site,
) -> None:
    unix.daemon.kill()
    assert path_of(unix).is_socket()
    unix.start()
    assert unix.ask("/healthz").status == 200
    assert unix.daemon.stop() == 0
    left = {path.name for path in unix.daemon.directory.iterdir()}
    assert not {"http.sock", "http.sock.lock"} & left


def test_a_port_is_taken_again_right_after_a_kill(tcp: Site) -> None:
    with tcp.connect() as open_:
        open_.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert open_.recv(100)
        for _ in range(3):
            tcp.daemon.kill()
            tcp.start()
            assert tcp.ask("/healthz").status == 200


def test_a_daemon_with_viewers_stops_as_fast_as_ever(tcp: Site) -> None:
    idle = seconds_to_stop(tcp.daemon)
    tcp.start()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                tcp.ask("/api/state")
            except (OSError, http.client.HTTPException):  # it may end within a reply
                return

    viewers = [threading.Thread(target=look) for _ in range(4)]
    for viewer in viewers:
        viewer.start()
    wait_until(lambda: tcp.ask("/healthz").status == 200)
    assert seconds_to_stop(tcp.daemon) < max(2.0, 4 * idle)
    stop.set()
    for viewer in viewers:
        viewer.join()
    log = tcp.daemon.log.read_text()
    assert "Traceback" not in log
    assert "does not stop" not in log


def test_a_daemon_that_serves_no_http_imports_none_of_it() -> None:
    code = (
        "import sys, trackd.server\n"
        "theirs = ('waitress', 'prometheus_client', 'trackd.http.listener')\n"
        "print([name for name in theirs if name in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/"
    )
    assert ran.stdout == "[]\n"


def test_a_reload_does_not_change_where_http_is_served(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    file = tmp_path / "trackd.toml"
    address = f"127.0.0.1:{free_port()}"
    file.write_text(f'http = "{address}"\n')
    tcp = Site(make_trackd_daemon(start=False, config=file), address)
    tcp.start()
    assert tcp.ask("/healthz").status == 200
    file.write_text(f'http = "127.0.0.1:{free_port()}"\n')
    os.kill(tcp.daemon.pid, signal.SIGHUP)
    wait_until(lambda: "setting=http" in tcp.daemon.log.read_text())
    assert tcp.ask("/healthz").status == 200


# -- readiness ---------------------------------------------------------------------------


def test_readiness_is_a_request_the_whole_way(tcp: Site) -> None:
    with Tracker(tcp.daemon.endpoint) as tracker:
        before = tracker.status()["revision"]
        assert tcp.ask("/readyz").body == b"ready\n"
        assert tracker.status()["revision"] == before, "and it changes nothing"


def test_a_daemon_that_cannot_store_is_not_ready_and_says_why(
    make_trackd_daemon: MakeDaemon, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "512k") as disk:
        tcp = site(make_trackd_daemon, state_dir=disk)
        with Tracker(tcp.daemon.endpoint) as tracker:
            tracker.track_expected(Proxy("p"))
            assert tcp.ask("/readyz").status == 200
            full = fill(disk)
            wait_until(lambda: tcp.ask("/readyz").status == 503)
            wait_until(lambda: tracker.status()["store"] == "failing")
            answer = tcp.ask("/readyz")
            assert (answer.status, b"cannot be stored" in answer.body) == (503, True)
            assert tcp.ask("/healthz").status == 200
            assert tcp.json("/api/state")["status"]["store"] == "failing"
            assert tcp.metrics()["trackd_store_failing", OF_CLUSTER] == 1
            full.unlink()
            wait_until(lambda: tcp.ask("/readyz").status == 200)
            assert tcp.metrics()["trackd_store_failing", OF_CLUSTER] == 0
        tcp.daemon.stop()


# -- what viewers cost -------------------------------------------------------------------


def test_a_hundred_viewers_cost_the_daemon_no_more_than_one(tcp: Site) -> None:
    with Tracker(tcp.daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{number}") for number in range(2000)))
        before = tracker.status()["requests"]
        began = time.monotonic()
        for _ in range(100):
            assert tcp.ask("/api/state").status == 200
            assert tcp.ask("/api/proxies").status == 200
        moments = (time.monotonic() - began) / 0.5 + 2
        # status, metrics, log; two pages of proxies and a look for a third
        assert tracker.status()["requests"] - before <= 6 * moments


def test_what_a_page_is_told_fits_what_the_daemon_says(tcp: Site) -> None:
    with Tracker(tcp.daemon.endpoint, name="mine") as tracker:
        tracker.track_expected(Proxy("a", "g", 2**64 - 1), Proxy("b", "g", 1), Proxy("c"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("c")
        told = tcp.json("/api/proxies")
        rows = {row["name"]: row for row in told["proxies"]}
        assert rows["a"]["generation"] == "18446744073709551615"
        assert (rows["a"]["desired"], rows["b"]["desired"], rows["a"]["lease"]) == (
            True,
            False,
            None,
        )
        assert (rows["c"]["lease"], rows["c"]["pid"]) == (lease.id, os.getpid())
        holder = told["holders"][str(rows["c"]["session"])]
        assert holder["name"] == "mine"
        assert holder["command"] == command_of(os.getpid())
        wait_until(lambda: tcp.json("/api/state")["status"]["claimed"] == 1)
        events = tcp.json("/api/state")["events"]
        assert [kind for _, _, kind, _ in events][-2:] == ["lease_granted", "proxy_claimed"]
        assert events[-1][3]["name"] == "c"


# -- the numbers -------------------------------------------------------------------------


class Tally:
    """One thread's random work as an agent, and what came of it."""

    def __init__(self, endpoint: str, seed: int) -> None:
        self.tracker = Tracker(endpoint, name=f"agent {seed}", timeout=PATIENCE)
        self.random = random.Random(seed)
        self.leases: list[Lease] = []
        self.count: Counter[str] = Counter()

    def work(self, steps: int) -> None:
        for _ in range(steps):
            getattr(
                self, self.random.choice(["gossip", *["acquire", "claim", "release"] * 4, "adopt"])
            )()

    def name(self) -> str:
        return f"p{self.random.randrange(30)}"

    def gossip(self) -> None:
        mentions = [
            Proxy(self.name(), self.random.choice(["", "g"]), self.random.randrange(3))
            for _ in range(self.random.randrange(1, 6))
        ]
        self.tracker.track_expected(*mentions)
        self.count["messages"] += 1
        self.count["mentions"] += len(mentions)

    def acquire(self) -> None:
        lease = self.tracker.try_acquire()
        if lease is None:
            self.count["refused"] += 1
        else:
            self.count["granted"] += 1
            self.leases.append(lease)

    def adopt(self) -> None:
        lease = self.tracker.adopt(self.name())
        if lease is None:
            self.count["duplicates"] += 1
        else:
            self.count["adopted"] += 1
            self.leases.append(lease)

    def claim(self) -> None:
        free = [lease for lease in self.leases if lease.claimed_name is None]
        if free:
            claimed = self.random.choice(free).claim(self.name())
            self.count["claims" if claimed else "duplicates"] += 1

    def release(self) -> None:
        if self.leases and self.random.random() < 0.7:
            self.leases.pop(self.random.randrange(len(self.leases))).release()
            self.count["released"] += 1


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_metrics_numbers_equal_the_snapshot_s_after_random_work(tcp: Site, seed: int) -> None:
    tallies = [Tally(tcp.daemon.endpoint, 100 * seed + number) for number in range(4)]
    threads = [threading.Thread(target=tally.work, args=[300]) for tally in tallies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for tally in tallies[1:2]:
        tally.count["closed"] += len(tally.leases)
        tally.tracker.close()
    counted = sum((tally.count for tally in tallies), Counter())
    with Tracker(tcp.daemon.endpoint) as tracker:
        told = tracker.snapshot()
        status = tracker.status()
    metrics = tcp.metrics()

    def total(name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(
            v for (n, found), v in metrics.items() if n == name and wanted <= dict(found).items()
        )

    # what agents saw
    assert total("trackd_grants_total") == counted["granted"] + counted["adopted"]
    assert total("trackd_grants_total", reason="adopt") == counted["adopted"]
    assert total("trackd_refusals_total") == counted["refused"]
    assert total("trackd_claims_total") == counted["claims"] + counted["adopted"]
    assert total("trackd_duplicates_total") == counted["duplicates"]
    assert total("trackd_releases_total", cause="asked") == counted["released"]
    assert total("trackd_releases_total", cause="closed") == counted["closed"]
    assert total("trackd_gossip_messages_total") == counted["messages"]
    assert total("trackd_gossip_proxies_total") == counted["mentions"]
    assert total("trackd_sessions_opened_total") == len(tallies)
    assert total("trackd_sessions_ended_total", reason="closed") == 1

    # what there is
    leases, proxies = told["leases"], told["proxies"]
    held = [lease for lease in leases if lease["name"] is not None]
    desired = [proxy for proxy in proxies if proxy["desired"]]
    assert total("trackd_grants_total") - total("trackd_releases_total") == len(leases)
    assert total("trackd_claimed_proxies") == len(held)
    assert total("trackd_inflight_leases") == len(leases) - len(held)
    assert total("trackd_desired_proxies") == len(desired)
    assert total("trackd_claimed_desired_proxies") == sum(
        proxy["lease"] is not None for proxy in desired
    )
    groups = Counter(proxy["group"] for proxy in proxies if proxy["tracked"])
    assert {group: total("trackd_tracked_proxies", group=group) for group in groups} == groups
    assert total("trackd_all_tracked_proxies") == groups.total() == status["tracked"]
    assert total("trackd_sessions") == len(told["sessions"]) == len(tallies) - 1
    assert total("trackd_waiting_requests") == 0
    assert total("trackd_revision") == told["revision"]
    assert total("trackd_events_total") == told["revision"]
    for tally in tallies:
        tally.tracker.close()


def test_a_crash_counts_as_one_and_says_how_long_its_leases_were_held(tcp: Site) -> None:
    code = (
        "import sys; from trackd_client import Tracker\n"
        "tracker = Tracker(sys.argv[1]); tracker.adopt('p'); print('held', flush=True)\n"
        "sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, tcp.daemon.endpoint],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"held\n"
        agent.kill()
        agent.wait()
    wait_until(lambda: tcp.metrics()["trackd_sessions", OF_CLUSTER] == 0)
    metrics = tcp.metrics()
    assert metrics["trackd_releases_total", (("cause", "process_exited"), *OF_CLUSTER)] == 1
    assert metrics["trackd_sessions_ended_total", (*OF_CLUSTER, ("reason", "process_exited"))] == 1
    assert metrics["trackd_crash_to_release_seconds_count", OF_CLUSTER] == 1
    assert 0 < metrics["trackd_crash_to_release_seconds_sum", OF_CLUSTER] < PATIENCE
