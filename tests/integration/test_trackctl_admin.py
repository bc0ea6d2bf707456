"""What admins do with `trackctl`, how others are refused, and that the daemon logs who it was."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from helpers.support import PATIENCE, python_of, socket_path, wait_until
from helpers.trackctl import trackctl
from trackd_client import Lease, Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon


def lease_of(tracker: Tracker, *principals: str) -> Lease:
    lease = tracker.try_acquire()
    assert lease is not None
    assert not principals or lease.claim(*principals)
    return lease


def ctl(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return trackctl("--endpoint", daemon.endpoint, *arguments)


def test_release_takes_a_lease_from_its_agent_who_learns_it(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        lease = lease_of(tracker, "p1")
        careful = ctl(trackd_daemon, "release", str(lease.id))
        assert careful.returncode == 2
        assert "--force takes it" in careful.stderr
        assert tracker.is_claimed("p1")
        done = ctl(trackd_daemon, "release", str(lease.id), "--force")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"lease {lease.id} taken from session 1; p1 is free\n"
        assert lease.lost.wait(PATIENCE)
        assert not tracker.is_claimed("p1")
        again = ctl(trackd_daemon, "release", str(lease.id), "--force")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == f"trackctl: nobody holds lease {lease.id}\n"


def test_end_session_frees_all_that_an_agent_holds(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        first, second = lease_of(tracker, "p1"), lease_of(tracker)
        done = ctl(trackd_daemon, "end-session", "1")
        assert done.stdout == f"session 1 ended; 2 leases released: {first.id}, {second.id}\n"
        assert first.lost.wait(PATIENCE)
    none = ctl(trackd_daemon, "end-session", "99", "--json")
    told = json.loads(none.stdout)
    assert (none.returncode, told["ended"], told["freed"]) == (1, False, [])
    assert none.stderr == "trackctl: there is no session 99\n"


def test_forget_keeps_a_proxy_away_until_a_newer_generation_comes(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1", generation=2), Proxy("p2", generation=2))
        lease_of(tracker, "p2")
        done = ctl(trackd_daemon, "forget", "p1")
        assert re.fullmatch(
            r"p1 forgotten; old gossip of it is not believed for (2m 5\ds|3m 0s)\n", done.stdout
        )
        tracker.track_expected(Proxy("p1", generation=2))
        assert tracker.status()["tracked"] == 1
        assert "forgotten by an admin" in ctl(trackd_daemon, "explain", "p1").stdout
        tracker.track_expected(Proxy("p1", generation=3))
        assert tracker.status()["tracked"] == 2
        held = ctl(trackd_daemon, "forget", "p2")
        assert held.stdout.endswith("; a lease still holds it\n")
    none = ctl(trackd_daemon, "forget", "p9")
    assert (none.returncode, none.stderr) == (1, "trackctl: p9 is not tracked\n")


def test_explain_says_when_only_one_agent_mentions_a_missing_proxy(trackd_daemon: Daemon) -> None:
    both, one = Proxy("p1", ttl=10.0), Proxy("p2", ttl=10.0)
    with Tracker(trackd_daemon.endpoint) as tracker, Tracker(trackd_daemon.endpoint) as other:
        other.track_expected(both, one)

        def says_so() -> bool:
            tracker.track_expected(both)
            other.track_expected(both, one)
            return tracker.explain("p2").only_source

        words = ", and by no other that gossips: is it gone?"
        line = rf"mentioned by +session 1 \(pid .*\){re.escape(words)}\n"

        def people_are_told() -> bool:  # unless it has expired meanwhile
            told = ctl(trackd_daemon, "explain", "p2").stdout if says_so() else ""
            return re.search(line, told) is not None

        assert not says_so()
        wait_until(people_are_told)
        assert not tracker.explain("p1").only_source
        assert words not in ctl(trackd_daemon, "explain", "p1").stdout


def test_forget_drops_a_group_or_one_generation_of_it(trackd_daemon: Daemon) -> None:
    largest = 2**64 - 1
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{n}", "east", 7) for n in range(3)))
        tracker.track_expected(Proxy("p0", "east", largest))
        assert tracker.status()["desired"] == 1, "one message made the others undesired"
        told = ctl(trackd_daemon, "explain", "p1").stdout
        pid, uid = os.getpid(), os.geteuid()
        assert re.search(rf"group set by +session 1 \(pid {pid} .*, uid {uid}\)\n", told), told
        done = ctl(trackd_daemon, "forget", "--group", "east", "--generation", str(largest))
        assert done.stdout.startswith(
            f"1 proxy of generation {largest} of group east forgotten; old gossip of it is not"
        )
        tracker.track_expected(Proxy("p0", "east", 7), Proxy("p1", "east", largest))
        assert tracker.status()["desired"] == 3
        lease_of(tracker, "p1")
        done = ctl(trackd_daemon, "forget", "--group", "east")
        assert done.stdout.startswith("3 proxies of group east forgotten; ")
        assert done.stdout.endswith("; leases still hold some\n")
        assert tracker.status()["tracked"] == 0
    none = ctl(trackd_daemon, "forget", "--group", "east")
    assert (none.returncode, none.stderr) == (1, "trackctl: group east is not tracked\n")
    for wrong in ([], ["p1", "--group", "east"], ["p1", "--generation", "7"]):
        assert ctl(trackd_daemon, "forget", *wrong).returncode == 2


@pytest.mark.rule(17)
def test_people_see_why_dials_pause_and_resume_ends_it(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint, name="dialler") as tracker:
        tracker.track_expected(Proxy("p1"))
        lease_of(tracker).release(failed="rate", retry_after=60)
        status, explained = (
            ctl(trackd_daemon, "status").stdout,
            ctl(trackd_daemon, "explain").stdout,
        )
        assert "dialler" in re.search(r"^ *pause .*", status, re.MULTILINE)[0]  # type: ignore[index]
        assert "dials pause after failures" in explained
        assert "Of the last 1 dial, 1 met a rate limit." in " ".join(explained.split())
        assert tracker.try_acquire() is None
        done = ctl(trackd_daemon, "resume")
        assert (done.returncode, done.stdout) == (0, "1 pause ended\n")
        assert json.loads(ctl(trackd_daemon, "resume", "--json").stdout)["resumed"] == 0
        lease_of(tracker).release(failed="auth")
        assert ", 1 of them pauses" in ctl(trackd_daemon, "status").stdout
        told = ctl(trackd_daemon, "log").stdout
    assert "dials of the host pause after 1 failed dial" in told
    assert f"dials of the host go on: by an admin (uid {os.geteuid()}," in told


def test_set_connection_count_changes_the_mode(trackd_daemon: Daemon) -> None:
    assert ctl(trackd_daemon, "set-connection-count", "3").stdout == (
        "at most 3 connections: proxy peering\n"
    )
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert tracker.status()["connection_count"] == 3
        done = ctl(trackd_daemon, "set-connection-count", "-1", "--json")
        assert json.loads(done.stdout) == {"connection_count": -1}
        assert tracker.status()["mode"] == "agent mesh"


def test_reload_tells_what_changed_and_what_needs_a_restart(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text("proxy_expiry = 60\n")
    daemon = configured(tmp_path, file)
    try:
        assert ctl(daemon, "reload").stdout == "nothing has changed\n"
        file.write_text("proxy_expiry = 70\nheartbeat_ttl = 40\n")
        told = ctl(daemon, "reload")
        assert told.returncode == 0, told.stderr
        assert "changed: proxy_expiry\n" in told.stdout
        assert "not changed: heartbeat_ttl: " in told.stdout
        assert "needs a restart: heartbeat_ttl" in ctl(daemon, "status").stdout
        file.write_text("proxy_expiry = what\n")
        wrong = ctl(daemon, "reload")
        assert wrong.returncode == 1
        assert wrong.stderr.startswith("trackctl: nothing was changed: ")
        file.write_text("proxy_expiry = false\nlog_level = 'loud'\n")
        lines = ctl(daemon, "reload").stderr.splitlines()
        assert lines[0] == "trackctl: nothing was changed: the configuration has 2 problems:"
        assert [line.split(": ")[1] for line in lines[1:]] == ["proxy_expiry", "log_level"]
        outcome = json.loads(ctl(daemon, "reload", "--json").stdout)
        assert outcome.keys() == {"wall", "changed", "refused", "error"}
        assert "refused, nothing changed" in ctl(daemon, "status").stdout
    finally:
        daemon.close()


def configured(directory: Path, file: Path) -> Daemon:
    place = directory / "d"
    place.mkdir()
    daemon = Daemon(place, config=str(file))
    daemon.start()
    return daemon


@pytest.mark.parametrize(
    "act",
    [
        ["release", "1", "--force"],
        ["end-session", "1"],
        ["forget", "p1"],
        ["set-connection-count", "3"],
        ["reload"],
    ],
    ids=lambda act: act[0],
)
def test_who_is_no_admin_is_refused_clearly(make_trackd_daemon: MakeDaemon, act: list[str]) -> None:
    executable, options = python_of(65534)
    daemon = make_trackd_daemon(socket_mode="0666", count_role="admin")
    for place in (socket_path(daemon).parent, *socket_path(daemon).parents):
        if not place.stat().st_mode & 0o001:
            place.chmod(0o755)
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease_of(tracker, "p1")
        before = tracker.status()
        done = subprocess.run(
            [
                executable,
                "-c",
                "from trackd_client.cli import main; main()",
                "--endpoint",
                daemon.endpoint,
                *act,
            ],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            timeout=PATIENCE,
            **options,
        )
        after = tracker.status()
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert "(admins are root, the daemon's own user, and whom its settings" in done.stderr
    kept = ("tracked", "claimed", "connection_count", "reloads")
    assert [after[name] for name in kept] == [before[name] for name in kept]


def test_every_admin_act_is_logged_with_who_did_it(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        lease_of(tracker, "p1")
        acts: dict[str, list[str]] = {
            "forget": ["forget", "p2"],
            "force_release": ["release", "1", "--force"],
            "set_connection_count": ["set-connection-count", "3"],
            "end_session": ["end-session", "1"],
            "reload": ["reload"],
        }
        for act in acts.values():
            done = ctl(trackd_daemon, *act)
            assert done.returncode == 0, done.stderr

    def logged() -> dict[str, str]:
        lines = trackd_daemon.log.read_text().splitlines(keepends=True)
        found = [line for line in lines if "admin act" in line and line.endswith("\n")]
        return {re.findall(r"operation=(\w+)", line)[0]: line for line in found}

    wait_until(lambda: len(logged()) >= len(acts))  # a thread of the daemon's own writes the log
    found = logged()
    assert found.keys() == acts.keys()
    for line in found.values():
        assert f"uid={os.getuid()} pid=" in line
    said = ctl(trackd_daemon, "log").stdout
    assert f"by an admin (uid {os.getuid()}, pid " in said
    assert "p2 forgotten" in said
