"""`trackd lead`: what it needs, and how it says that something is missing or wrong."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pykka
import pytest

from fleet.cluster import Cluster
from fleet.fleet import CLUSTER, LONG, Fleet, without_settings
from helpers.support import wait_until
from helpers.web import free_port
from trackd.config import exits
from trackd.fleet import lead as lead_module
from trackd.fleet.etcd import Etcd, KeyValue
from trackd.fleet.keys import make_keys
from trackd.fleet.lead import wait_while_it_reads
from trackd.fleet.rows import Keys, Meta, pack, read_head, split_batch, unpack
from trackd.storage.store import DeposedError
from trackd_client import Tracker


def lead(tmp_path: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a candidate that cannot begin."""
    file = tmp_path / "lead.toml"
    file.write_text(text)
    return trackd("lead", "--config", str(file))


def trackd(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "trackd", *words],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env=without_settings(),
    )


def settings(tmp_path: Path, **changed: str) -> str:
    """Return settings that are right, but for what is changed."""
    (tmp_path / "hosts").mkdir()
    make_keys("control-1", tmp_path)
    values = {
        "etcd_endpoints": '["127.0.0.1:1"]',
        "listen": f'"127.0.0.1:{free_port()}"',
        "key_file": f'"{tmp_path}/control-1.key"',
        "hosts_dir": f'"{tmp_path}/hosts"',
        **changed,
    }
    lines = [f"{name} = {value}" for name, value in values.items()]
    return "\n".join(
        [f'cluster_name = "example.com"\nstate_dir = "{tmp_path}/state"', "[fleet]", *lines]
    )


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    done = lead(tmp_path, f'cluster_name = "example.com"\nstate_dir = "{tmp_path}"\n')
    assert done.returncode == exits.USAGE
    for name in ("etcd_endpoints", "listen", "key_file", "hosts_dir"):
        assert f"[fleet] {name} is missing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("changed", "code", "text"),
    [
        ({"key_file": '"/nowhere.key"'}, exits.USAGE, "cannot read /nowhere.key"),
        ({"hosts_dir": '"/nowhere"'}, exits.USAGE, "cannot read the keys in /nowhere"),
        ({"etcd_ca": '"/nowhere.pem"'}, exits.UNUSABLE, "cannot read /nowhere.pem"),
        ({"etcd_cert": '"/c"'}, exits.USAGE, "etcd_cert, etcd_key and etcd_ca belong together"),
        ({"listen": '"nowhere"'}, exits.USAGE, "is not an address and a port"),
        ({"etcd_endpoints": '["a b:1"]'}, exits.USAGE, "is not a list of members of etcd"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    tmp_path: Path, changed: dict[str, str], code: int, text: str
) -> None:
    done = lead(tmp_path, settings(tmp_path, **changed))
    assert text in done.stderr
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_relay_without_keys_says_what_it_needs(tmp_path: Path) -> None:
    file = tmp_path / "relay.toml"
    file.write_text(
        f'cluster_name = "example.com"\nendpoint = "{tmp_path}/a.sock"\n'
        '[fleet]\nleaders = ["control-1=127.0.0.1:7717"]\n'
    )
    done = trackd("run", "--config", str(file))
    assert done.returncode == exits.USAGE
    assert "[fleet] key_file is missing" in done.stderr
    assert "[fleet] leaders_dir is missing" in done.stderr


def test_a_candidate_proves_itself_to_etcd_by_a_certificate(certificates: Path) -> None:
    tls = "".join(
        f'etcd_{name} = "{certificates}/{file}"\n'
        for name, file in (("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key"))
    )
    with Cluster(size=1, tls=certificates) as cluster, Fleet(cluster, hosts=1, lead=tls) as fleet:
        fleet.wait_until_served(fleet.relays[0])
        with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:
            tracker.set_connection_count(3)


def test_two_candidates_of_a_fleet_do_not_share_a_host_s_directory(tmp_path: Path) -> None:
    text = settings(tmp_path)
    file = tmp_path / "lead.toml"
    file.write_text(text)
    first = subprocess.Popen(
        [sys.executable, "-m", "trackd", "lead", "--config", str(file)],
        stderr=subprocess.DEVNULL,
        env=without_settings(),
    )
    try:
        wait_until(lambda: any((tmp_path / "state").glob("*.lock")), LONG)
        second = lead(tmp_path, text)
        assert second.returncode == exits.HELD
        assert "is held by" in second.stderr
    finally:
        first.terminate()
        assert first.wait(LONG) == exits.OK


@pytest.mark.parametrize("what", ["format", "kind of change"])
def test_a_candidate_that_cannot_read_what_a_newer_one_has_written_stops(
    cluster: Cluster, etcd: Etcd, what: str
) -> None:
    prefix = f"trackd/1/{CLUSTER}/".encode()
    keys = Keys(prefix)

    def stored() -> list[KeyValue]:
        found = etcd.range(prefix, prefix + b"~").kvs
        return [each for each in found if not each.lease]  # but for who leads, and who is there

    with Fleet(cluster, candidates=1, hosts=1) as fleet:
        (candidate,) = fleet.candidates
        fleet.wait_until_served(fleet.relays[0])
        with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:
            tracker.set_connection_count(3)
        assert candidate.end() == exits.OK
        head = read_head(etcd.range(keys.head).kvs[0].value)
        if what == "format":
            meta = Meta(*unpack(etcd.range(keys.meta).kvs[0].value))
            etcd.put(keys.meta, pack(meta._replace(format=99)))
        else:
            batch = pack([[1.0, 2.0, [["weather", "rain"]]]])
            (row,) = split_batch(batch)
            etcd.put(keys.row(head.row + 1), row)
            etcd.put(keys.head, head._replace(row=head.row + 1).pack())
        before = stored()
        candidate.start()
        wait_until(lambda: candidate.has_ended, LONG)
        assert candidate.end() == exits.FAILED
        said = candidate.log.read_text()
        assert ("newer trackd (format 99;" if what == "format" else "no change 'weather'") in said
        assert stored() == before


# -- signs of life while the state is read ---------------------------------------------------


class Reading:
    """The state is read on another thread, and this one waits for it."""

    def __init__(self) -> None:
        self.answered: pykka.ThreadingFuture[None] = pykka.ThreadingFuture()
        self.read = self.signs = 0
        self.leads = True

    def _sign(self) -> None:
        self.signs += 1

    def wait(self) -> None:
        wait_while_it_reads(
            self.answered,
            count=lambda: self.read,
            alive=self._sign,
            leads=lambda: self.leads,
        )


@pytest.fixture
def reading(monkeypatch: pytest.MonkeyPatch) -> Reading:
    monkeypatch.setattr(lead_module, "_LOOK_SECONDS", 0.01)
    return Reading()


def run(what: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=what, daemon=True)
    thread.start()
    return thread


def test_while_more_is_read_there_are_signs_of_life(reading: Reading) -> None:
    waits = run(reading.wait)
    for signs in range(1, 5):
        reading.read += 1
        wait_until(lambda: reading.signs == signs)  # noqa: B023 - it is over before the next
    reading.answered.set(None)
    waits.join(30)
    assert not waits.is_alive()


def test_a_reading_that_gets_no_further_shows_no_sign_of_life(reading: Reading) -> None:
    waits = run(reading.wait)
    reading.read += 1
    wait_until(lambda: reading.signs == 1)
    time.sleep(0.2)
    assert reading.signs == 1
    reading.answered.set(None)
    waits.join(30)
    assert not waits.is_alive()


def test_a_reading_that_gets_on_has_a_bound(
    reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lead_module, "_READ_SECONDS", 0.1)
    with pytest.raises(pykka.Timeout):
        reading.wait()


def test_a_reading_ends_with_its_term(reading: Reading) -> None:
    reading.leads = False
    with pytest.raises(DeposedError):
        reading.wait()


def test_what_has_failed_is_raised(reading: Reading) -> None:
    reading.answered.set_exception((ValueError, ValueError("of the actor"), None))
    with pytest.raises(ValueError, match="of the actor"):
        reading.wait()
