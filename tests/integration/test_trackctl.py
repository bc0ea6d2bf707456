from __future__ import annotations

import json
import shlex
import subprocess

from helpers.trackctl import PLAIN, TRACKCTL, trackctl
from trackd_client import Proxy, Tracker
from trackd_client.testing import Daemon


def test_status_tells_the_counts_to_people_and_to_scripts(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1", generation=3), Proxy("p2", group="g"))
        lease = tracker.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        people = trackctl("--endpoint", trackd_daemon.endpoint, "status")
        script = trackctl("--endpoint", trackd_daemon.endpoint, "status", "--json")
    assert people.returncode == script.returncode == 0, people.stderr + script.stderr
    assert "example.com  1 of 2 proxies has no tunnel; the last dial began" in people.stdout
    assert "2 tracked, 2 desired" in people.stdout
    assert "\x1b" not in people.stdout, "colours belong on a terminal"
    told = json.loads(script.stdout)
    assert (told["claimed"], told["tracked"], told["inflight"]) == (1, 2, 0)
    assert told["groups"][1] == {
        "group": "g",
        "generation": 0,
        "tracked": 1,
        "desired": 1,
        "claimed": 0,
        "source": told["groups"][1]["source"],
    }
    assert told["groups"][1]["source"]["session"] == 1


def test_status_finds_the_daemon_as_the_client_does(trackd_daemon: Daemon) -> None:
    found = trackctl("status", "--json", TRACKD_ENDPOINT=trackd_daemon.endpoint)
    assert found.returncode == 0, found.stderr
    wrong = trackctl("--cluster", "other", "status", TRACKD_ENDPOINT=trackd_daemon.endpoint)
    assert wrong.returncode == 1
    assert "serves the cluster 'example.com', not 'other'" in wrong.stderr


def test_status_exits_with_3_when_no_daemon_answers(trackd_daemon: Daemon) -> None:
    trackd_daemon.kill()
    left = trackctl("--endpoint", trackd_daemon.endpoint, "status")
    assert left.returncode == 3
    assert "no process listens on it; start the daemon" in left.stderr
    assert "Traceback" not in left.stderr


def test_an_endpoint_that_no_socket_can_have_is_wrong_usage() -> None:
    wrong = trackctl("--endpoint", "tcp://127.0.0.1:1", "status")
    assert wrong.returncode == 2
    assert "Traceback" not in wrong.stderr


def test_json_may_stand_before_the_command_or_after_it(trackd_daemon: Daemon) -> None:
    before = trackctl("--json", "--endpoint", trackd_daemon.endpoint, "proxies")
    after = trackctl("--endpoint", trackd_daemon.endpoint, "proxies", "--json")
    assert json.loads(before.stdout) == json.loads(after.stdout)


def test_a_reader_that_has_seen_enough_is_no_error_to_be_told(trackd_daemon: Daemon) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(*(Proxy(f"p{number}") for number in range(5000)))
    command = shlex.join([*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "proxies"])
    piped = subprocess.run(
        ["bash", "-c", f"{command} | head -1"],
        capture_output=True,
        text=True,
        check=True,
        env=PLAIN,
        timeout=60,
    )
    assert piped.stdout.startswith("name ")
    assert piped.stderr == ""
