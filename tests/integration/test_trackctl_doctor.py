"""`trackctl doctor`, `dump` and `metrics`: what is wrong here, and what colleagues need to know."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from helpers.support import PATIENCE, python_of, socket_path
from helpers.trackctl import PLAIN, TRACKCTL, trackctl
from trackd_client import Proxy, Tracker, __version__
from trackd_client.cli import host_checks
from trackd_client.cli.host_checks import Finding, check_unit
from trackd_client.testing import Daemon, MakeDaemon


def examined(daemon: Daemon, **environ: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Return the exit code, and the findings by their checks."""
    done = trackctl("--endpoint", daemon.endpoint, "doctor", "--json", **environ)
    told = json.loads(done.stdout)
    assert told["well"] == (done.returncode == 0)
    return done.returncode, {each["check"]: each for each in told["findings"]}


def test_a_daemon_in_order_is_well(trackd_daemon: Daemon) -> None:
    code, found = examined(trackd_daemon)
    assert code == 0
    assert {each["level"] for each in found.values()} <= {"ok", "note"}
    assert {"endpoint", "socket", "permissions", "group", "unit"} < found.keys()
    assert {"daemon", "versions", "clock", "store", "limits", "descriptors"} < found.keys()
    assert trackd_daemon.endpoint in found["endpoint"]["said"]
    assert f"pid {trackd_daemon.pid}" in found["daemon"]["said"]
    people = trackctl("--endpoint", trackd_daemon.endpoint, "doctor")
    assert people.returncode == 0
    assert people.stdout.endswith("all is well\n")


def test_no_daemon_is_a_problem_with_something_to_do(trackd_daemon: Daemon) -> None:
    trackd_daemon.kill()
    code, found = examined(trackd_daemon)
    assert (code, found["listener"]["level"]) == (1, "problem")
    assert "no process listens" in found["listener"]["said"]
    assert "trackd run --cluster-name" in found["listener"]["do"]
    socket_path(trackd_daemon).unlink()
    code, found = examined(trackd_daemon)
    assert (code, found["socket"]["level"]) == (1, "problem")
    socket_path(trackd_daemon).write_text("")
    code, found = examined(trackd_daemon)
    assert code == 1
    assert "is not a socket" in found["socket"]["said"]
    people = trackctl("--endpoint", trackd_daemon.endpoint, "doctor")
    assert people.returncode == 1
    assert "→ remove it" in people.stdout
    assert people.stdout.endswith("1 problem\n")


def test_a_daemon_of_another_cluster_is_a_problem(trackd_daemon: Daemon) -> None:
    done = trackctl("--cluster", "other", "--endpoint", trackd_daemon.endpoint, "doctor")
    assert done.returncode == 1
    assert "serves the cluster 'example.com', not 'other'" in done.stdout


def test_state_that_is_not_kept_is_worth_a_note(make_trackd_daemon: MakeDaemon) -> None:
    code, found = examined(make_trackd_daemon(state_dir=""))
    assert (code, found["store"]["level"]) == (0, "note")
    assert "set state_dir" in found["store"]["do"]


def test_a_count_near_its_limit_is_a_problem(make_trackd_daemon: MakeDaemon) -> None:
    daemon = make_trackd_daemon(max_tracked=10)
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{number}") for number in range(9)))
    code, found = examined(daemon)
    assert (code, found["limits"]["said"]) == (1, "9 of 10 tracked proxies")
    assert "raise max_tracked" in found["limits"]["do"]


def test_a_setting_that_waits_for_a_restart_is_a_problem(tmp_path: Path) -> None:
    file, place = tmp_path / "t.toml", tmp_path / "d"
    place.mkdir()
    file.write_text("")
    daemon = Daemon(place, config=str(file))
    try:
        daemon.start()
        file.write_text("heartbeat_ttl = 40\n")
        trackctl("--endpoint", daemon.endpoint, "reload")
        code, found = examined(daemon)
        assert (code, found["reload"]["do"]) == (1, "restart the daemon")
        file.write_text("heartbeat_ttl = what\n")
        trackctl("--endpoint", daemon.endpoint, "reload")
        code, found = examined(daemon)
        assert code == 1
        assert "trackd check-config" in found["reload"]["do"]
    finally:
        daemon.close()


def test_a_user_outside_the_group_is_told_how_to_get_in(make_trackd_daemon: MakeDaemon) -> None:
    executable, options = python_of(65534)
    daemon = make_trackd_daemon(socket_mode="0660")
    for place in socket_path(daemon).parents:
        if not place.stat().st_mode & 0o001:
            place.chmod(0o755)
    done = subprocess.run(
        [executable, *TRACKCTL[1:], "--endpoint", daemon.endpoint, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=PATIENCE,
        **options,
    )
    assert done.returncode == 1, done.stderr
    assert "this user may not open the socket" in done.stdout
    assert "sudo usermod --append --groups " in done.stdout


def test_a_unit_that_failed_is_a_problem_with_something_to_do(tmp_path: Path) -> None:
    systemctl = tmp_path / "systemctl"
    systemctl.write_text("""#!/bin/sh
        for unit; do :; done
        echo LoadState=loaded
        case $unit in
        *.socket) echo ActiveState=inactive; echo SubState=dead;;
        *) echo ActiveState=failed; echo SubState=failed; echo Result=watchdog; echo NRestarts=3;;
        esac""")
    systemctl.chmod(0o755)
    found = [check_unit(str(systemctl), f"trackd@x.{kind}") for kind in ("socket", "service")]
    assert found[0] == Finding(
        "unit",
        "problem",
        "trackd@x.socket: inactive (dead)",
        "sudo systemctl enable --now trackd@x.socket",
    )
    assert found[1].said == (
        "trackd@x.service: failed (failed), restarted 3 times, because of watchdog"
    )
    assert found[1].do.startswith("journalctl -u trackd@x.service")


def test_a_socket_for_its_owner_only_is_not_opened_by_joining_a_group(
    make_trackd_daemon: MakeDaemon,
) -> None:
    executable, options = python_of(65534)
    daemon = make_trackd_daemon(socket_mode="0600")
    for place in socket_path(daemon).parents:
        if not place.stat().st_mode & 0o001:
            place.chmod(0o755)
    done = subprocess.run(
        [executable, *TRACKCTL[1:], "--endpoint", daemon.endpoint, "doctor"],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=PATIENCE,
        **options,
    )
    assert done.returncode == 1, done.stderr
    assert "usermod" not in done.stdout
    assert "socket_mode 0660" in done.stdout


def test_nobody_is_advised_to_enable_a_cluster_called_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_checks, "RUN", tmp_path)
    path = tmp_path / "default" / "trackd.sock"
    endpoint = f"ipc://{path}"
    (finding,) = [each for each in host_checks.check_host(endpoint, path, given=False) if each.do]
    assert "default" not in finding.do
    assert "--cluster" in finding.do
    with closing(socket.socket(socket.AF_UNIX)) as other:
        (tmp_path / "example.com").mkdir()
        other.bind(str(tmp_path / "example.com" / "trackd.sock"))
        (finding,) = [
            each for each in host_checks.check_host(endpoint, path, given=False) if each.do
        ]
    assert "trackctl --cluster example.com" in finding.do


@pytest.mark.parametrize(
    ("properties", "loops"),
    [
        ({"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "1"}, True),
        ({"ActiveState": "active", "SubState": "running", "NRestarts": "9"}, True),
        ({"ActiveState": "active", "SubState": "running", "NRestarts": "1"}, False),
    ],
)
def test_a_unit_that_is_restarted_again_and_again_is_a_problem(
    tmp_path: Path, properties: dict[str, str], loops: bool
) -> None:
    systemctl = tmp_path / "systemctl"
    now = f"ActiveEnterTimestampMonotonic={int(time.monotonic() * 1e6)}"
    lines = [now, "LoadState=loaded", *(f"{name}={value}" for name, value in properties.items())]
    systemctl.write_text("#!/bin/sh\n" + "".join(f"echo {line}\n" for line in lines))
    systemctl.chmod(0o755)
    found = check_unit(str(systemctl), "trackd@x.service")
    assert (found.level == "problem") is loops
    assert ("again and again" in found.said) is loops


def test_state_that_was_set_aside_is_a_problem(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        settings = {each["name"]: each["value"] for each in tracker.config()["settings"]}
    aside = Path(settings["state_dir"]) / "trackd.db.damaged-1"
    aside.touch()
    code, found = examined(trackd_daemon)
    assert (code, found["state files"]["level"]) == (1, "problem")
    assert aside.name in found["state files"]["said"]


def test_missing_tunnels_are_a_problem_and_a_code_for_scripts(trackd_daemon: Daemon) -> None:
    check = ("--endpoint", trackd_daemon.endpoint, "status", "--check")
    assert trackctl(*check).returncode == 1, "no proxy is known"
    assert trackctl(*check, "--allow-none").returncode == 0
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        code, found = examined(trackd_daemon)
        assert (code, found["tunnels"]["level"]) == (1, "problem")
        assert found["tunnels"]["said"] == "1 of 1 proxy has no tunnel; no agent is dialling"
        missing = trackctl(*check)
        assert (missing.returncode, missing.stdout) == (1, f"{found['tunnels']['said']}\n")
        assert trackctl(*check, "--allow-none").returncode == 1
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        code, found = examined(trackd_daemon)
        assert (code, found["tunnels"]["level"]) == (0, "ok")
        covered = trackctl(*check)
        assert (covered.returncode, covered.stdout) == (0, "the only proxy has a tunnel\n")
    trackd_daemon.stop()
    assert trackctl(*check).returncode == 3


PARTS = {"status", "explain", "snapshot", "log", "config", "metrics"}


def test_dump_writes_all_that_is_known_for_its_owner_alone(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    with Tracker(trackd_daemon.endpoint, name="agent") as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        file = tmp_path / "dump.json"
        done = trackctl("--endpoint", trackd_daemon.endpoint, "dump", str(file))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{file}: ")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    told = json.loads(file.read_text())
    assert told.keys() == {"dump", "wall", "versions", "doctor"} | PARTS
    assert told["dump"] == 1
    assert abs(told["wall"] - time.time()) < 60
    assert told["versions"]["trackctl"] == __version__
    assert told["status"]["tracked"] == 2
    assert [row["name"] for row in told["snapshot"]["proxies"]] == ["p1", "p2"]
    assert told["log"]["events"][0]["kind"] == "daemon_started"
    assert "max_sessions" in {each["name"] for each in told["config"]["settings"]}
    assert told["metrics"]["families"]
    assert {each["check"] for each in told["doctor"]} > {"socket", "daemon"}
    assert not any("token" in key for key in keys_of(told)), "a token is a secret"


def keys_of(value: Any) -> set[str]:
    if isinstance(value, dict):
        return set(value) | {key for inner in value.values() for key in keys_of(inner)}
    if isinstance(value, list):
        return {key for inner in value for key in keys_of(inner)}
    return set()


def test_dump_names_its_file_by_cluster_and_time(trackd_daemon: Daemon, tmp_path: Path) -> None:
    done = subprocess.run(
        [*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "dump"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=PLAIN,
        timeout=PATIENCE,
    )
    (file,) = tmp_path.iterdir()
    assert file.match("trackd-example.com-2*-*.json")
    assert done.stdout.startswith(f"{file.name}: ")
    piped = trackctl("--endpoint", trackd_daemon.endpoint, "dump", "-")
    assert json.loads(piped.stdout)["status"]["cluster"] == "example.com"


def test_dump_replaces_a_file_and_what_others_could_read_they_cannot_any_more(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    file = tmp_path / "dump.json"
    file.write_text("x" * 10_000_000)
    file.chmod(0o644)
    assert trackctl("--endpoint", trackd_daemon.endpoint, "dump", str(file)).returncode == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    json.loads(file.read_text())
    nowhere = trackctl("--endpoint", trackd_daemon.endpoint, "dump", "/nowhere/dump.json")
    assert (nowhere.returncode, nowhere.stdout) == (1, "")
    assert "cannot write /nowhere/dump.json: No such file" in nowhere.stderr


def test_dump_without_a_daemon_tells_what_the_doctor_found(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    trackd_daemon.stop()
    file = tmp_path / "dump.json"
    done = trackctl("--endpoint", trackd_daemon.endpoint, "dump", str(file))
    assert done.returncode == 3
    told = json.loads(file.read_text())
    assert "problem" in {each["level"] for each in told["doctor"]}
    assert all("no trackd daemon" in told[part]["error"] for part in PARTS)


def test_metrics_replace_a_file_at_once_or_leave_it(trackd_daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "trackd.prom"
    file.write_text("of yesterday")
    old = file.stat().st_ino
    write = ("metrics", "--output", str(file))
    done = trackctl("--endpoint", trackd_daemon.endpoint, *write)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert file.read_text().endswith("\n")
    assert 'trackd_sessions{cluster="example.com"}' in file.read_text()
    assert file.stat().st_ino != old, "a reader of the old file goes on reading the old one"
    assert file.stat().st_mode & 0o777 == 0o644

    kept = file.read_text()
    assert trackctl("--endpoint", str(tmp_path / "none"), *write).returncode == 3
    assert file.read_text() == kept
    assert [*tmp_path.iterdir()] == [file]

    nowhere = tmp_path / "missing" / "trackd.prom"
    failed = trackctl("--endpoint", trackd_daemon.endpoint, "metrics", "--output", str(nowhere))
    assert failed.returncode == 1
    assert failed.stderr == f"trackctl: cannot write {nowhere}: No such file or directory\n"


def test_metrics_are_written_to_what_is_no_plain_file_and_through_links(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    target, link, pipe = (tmp_path / name for name in ("target.prom", "link.prom", "pipe"))
    target.write_text("of yesterday")
    link.symlink_to(target)
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        for each in (link, pipe):
            done = trackctl("--endpoint", trackd_daemon.endpoint, "metrics", "--output", str(each))
            assert (done.returncode, done.stderr) == (0, "")
        assert b"trackd_sessions" in os.read(reading, 1 << 16)
    finally:
        os.close(reading)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert "trackd_sessions" in target.read_text()


def test_metrics_are_what_prometheus_reads(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        text = trackctl("--endpoint", trackd_daemon.endpoint, "metrics")
        told = trackctl("--endpoint", trackd_daemon.endpoint, "metrics", "--json")
    assert text.returncode == 0, text.stderr
    assert '\ntrackd_desired_proxies{cluster="example.com"} 2.0\n' in text.stdout
    assert text.stdout.endswith("\n")
    families = {family[0]: family for family in json.loads(told.stdout)["families"]}
    assert families["trackd_desired_proxies"][4] == [[[], 2]]


def test_no_group_is_a_line_of_its_own_in_the_metrics(trackd_daemon: Daemon) -> None:
    evil = ["g\u2028trackd_evil 1", 'g"} 1 #', "g\\", "\u202eg"]
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{i}", group) for i, group in enumerate(evil)))
        text = trackctl("--endpoint", trackd_daemon.endpoint, "metrics")
    samples = [
        sample
        for family in text_string_to_metric_families(text.stdout)
        for sample in family.samples
    ]
    assert not [sample.name for sample in samples if "evil" in sample.name]
    assert {s.labels["group"] for s in samples if s.name == "trackd_tracked_proxies"} == {*evil}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_dump_writes_into_no_file_that_somebody_else_has(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    theirs, twice = tmp_path / "theirs.json", tmp_path / "twice.json"
    for file in (theirs, twice):
        file.write_text("precious")
    os.chown(theirs, 65534, 65534)
    (tmp_path / "again").hardlink_to(twice)
    for file in (theirs, twice):
        done = trackctl("--endpoint", trackd_daemon.endpoint, "dump", str(file))
        assert (done.returncode, done.stdout) == (1, "")
        assert f"cannot write {file}: it is not yours alone; remove it first" in done.stderr
        assert file.read_text() == "precious"
