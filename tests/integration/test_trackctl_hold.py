"""`trackctl hold` and `trackctl gossip`: what agents that are shell scripts stand on."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from functools import partial
from pathlib import Path

import pytest

from helpers.support import PATIENCE, wait_until
from helpers.trackctl import PLAIN, TRACKCTL, Script, Terminal, start_trackctl, trackctl
from trackd_client import Lease, Proxy, Tracker
from trackd_client.testing import Daemon, MakeDaemon
from trackd_client.wire.clock import boottime

REPOSITORY = Path(__file__).parents[2]


def hold(daemon: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    return trackctl("--endpoint", daemon.endpoint, "hold", *arguments)


def test_hold_runs_a_command_with_a_lease_and_ends_with_its_code(
    trackd_daemon: Daemon, script: Script
) -> None:
    ran = hold(
        trackd_daemon,
        "--",
        script("""
            echo "$TRACKD_LEASE $TRACKD_ENDPOINT $TRACKD_CLAIM_FD $TRACKD_REPLY_FD $*"
            echo "p1.example.com p1" >&3
            read -r outcome name <&4
            echo "$outcome $name"
            exit 7"""),
        "--flag",
        "of the command",
    )
    assert ran.stderr == ""
    assert ran.stdout == f"1 {trackd_daemon.endpoint} 3 4 --flag of the command\nclaimed p1\n"
    assert ran.returncode == 7
    with Tracker(trackd_daemon.endpoint) as tracker:
        status = tracker.status()
    assert (status["claimed"], status["inflight"], status["sessions"]) == (0, 0, 1 - 1)


def test_the_command_holds_its_proxy_for_as_long_as_it_runs(
    trackd_daemon: Daemon, script: Script
) -> None:
    command = script('echo p1 >&3; read -r outcome <&4; echo "$outcome"; read -r end')
    holding = start_trackctl(
        "--endpoint", trackd_daemon.endpoint, "hold", command, stdin=subprocess.PIPE
    )
    assert holding.stdout is not None
    assert holding.stdout.readline() == "claimed p1\n"
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert tracker.is_claimed("p1")
        trackd_daemon.restart()
        assert tracker.is_claimed("p1"), "a restart of the daemon harms nobody"
        holding.communicate("end\n", timeout=PATIENCE)
        assert not tracker.is_claimed("p1")
    assert holding.returncode == 0


def test_a_command_that_met_a_held_proxy_is_told_and_ended(
    trackd_daemon: Daemon, script: Script
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert first_lease(tracker).claim("p1")
        careless = hold(trackd_daemon, script("echo p1 >&3; exec sleep 60"))
        careful = hold(
            trackd_daemon,
            script("""trap 'echo told; exit 9' TERM
                      echo p1 >&3
                      while :; do sleep 0.05; done"""),
        )
    assert careless.returncode == 128 + signal.SIGTERM
    assert (careful.returncode, careful.stdout) == (9, "told\n")


def test_a_command_may_dial_again_with_the_same_lease(
    trackd_daemon: Daemon, script: Script
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert first_lease(tracker).claim("p1")
        ran = hold(
            trackd_daemon,
            "--on-duplicate",
            "tell",
            script("""for name in p1 '' p2 p3; do
                        echo "$name" >&3
                        read -r answer <&4
                        echo "$answer"
                      done"""),
        )
    assert ran.stdout.splitlines() == [
        "held p1",
        "refused the line names no proxy, or the lease is gone",
        "claimed p2",
        "refused this lease has claimed p2",
    ]
    assert ran.returncode == 0


def test_the_command_finds_nothing_open_but_what_it_asked_for(
    trackd_daemon: Daemon, script: Script
) -> None:
    ran = hold(
        trackd_daemon,
        *("--fd", "4", "--reply-fd", "3"),
        script("""echo p1 >&4; read -r answer <&3; echo "$answer"; exec ls /proc/self/fd"""),
    )
    # The last one is that of the listing itself.
    assert ran.stdout.split() == ["claimed", "p1", "0", "1", "2", "3", "4", "5"]


def test_any_command_can_be_run_however_it_is_called(trackd_daemon: Daemon) -> None:
    program = "echo one\n# \x1b[2J ünd größer " + "x" * 300 + "\necho two"
    ran = hold(trackd_daemon, "--name", "a\nb" + "ü" * 300, "--", "sh", "-c", program)
    assert (ran.returncode, ran.stdout) == (0, "one\ntwo\n"), ran.stderr


def test_hold_gives_up_with_124_when_no_lease_comes_in_time(
    trackd_daemon: Daemon, script: Script
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        assert first_lease(tracker).claim("p1")
        ran = hold(trackd_daemon, "--timeout", "1.5", script("echo ran"))
    assert (ran.returncode, ran.stdout) == (124, "")
    assert "no lease was granted within 1.5 s" in ran.stderr


def test_hold_waits_until_a_tunnel_is_missing(trackd_daemon: Daemon, script: Script) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease = first_lease(tracker)
        assert lease.claim("p1")
        waiting = start_trackctl("--endpoint", trackd_daemon.endpoint, "hold", script("echo ran"))
        wait_until(lambda: tracker.status()["waiting"] == 1)
        lease.release()
        assert waiting.communicate(timeout=PATIENCE) == ("ran\n", "")
    assert waiting.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_waiting_and_leaves_nothing(
    trackd_daemon: Daemon, script: Script, number: signal.Signals
) -> None:
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"))
        assert first_lease(tracker).claim("p1")
        waiting = start_trackctl("--endpoint", trackd_daemon.endpoint, "hold", script("echo ran"))
        wait_until(lambda: tracker.status()["waiting"] == 1)
        waiting.send_signal(number)
        assert waiting.communicate(timeout=PATIENCE) == ("", "")
        assert waiting.returncode == 128 + number
        wait_until(lambda: tracker.status()["sessions"] == 1)


@pytest.mark.parametrize("name", ["TERM", "INT", "HUP", "USR1"])
def test_signals_are_passed_on_to_the_command(
    trackd_daemon: Daemon, script: Script, name: str
) -> None:
    command = script(f"""trap 'echo got {name}; exit 3' {name}
                         echo ready
                         while :; do sleep 0.05; done 2>/dev/null""")
    holding = start_trackctl("--endpoint", trackd_daemon.endpoint, "hold", command)
    assert holding.stdout is not None
    assert holding.stdout.readline() == "ready\n"
    holding.send_signal(signal.Signals[f"SIG{name}"])
    out, err = holding.communicate(timeout=PATIENCE)
    assert (out, err, holding.returncode) == (f"got {name}\n", "", 3)


def test_a_signal_that_was_ignored_before_is_ignored_by_both(
    trackd_daemon: Daemon, script: Script
) -> None:
    command = script("""trap 'exit 3' TERM
                        grep SigIgn /proc/$$/status
                        while :; do sleep 0.05; done""")
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *TRACKCTL]
    holding = subprocess.Popen(
        [*nohup, "--endpoint", trackd_daemon.endpoint, "hold", command],
        stdout=subprocess.PIPE,
        text=True,
        env=PLAIN,
    )
    assert holding.stdout is not None
    ignored = int(holding.stdout.readline().split()[1], 16)
    holding.send_signal(signal.SIGHUP)
    holding.send_signal(signal.SIGTERM)
    holding.communicate(timeout=PATIENCE)
    assert holding.returncode == 3
    bits = {name: ignored >> number - 1 & 1 for name, number in signal.Signals.__members__.items()}
    assert (bits["SIGHUP"], bits["SIGINT"], bits["SIGTERM"]) == (1, 0, 0)


def test_ctrl_c_at_a_terminal_reaches_the_command_once(
    trackd_daemon: Daemon, script: Script
) -> None:
    command = script("""trap 'echo caught' INT
                        trap 'echo ended; exit 3' TERM
                        echo ready
                        while :; do sleep 0.05; done""")
    with Terminal(*TRACKCTL, "--endpoint", trackd_daemon.endpoint, "hold", command) as terminal:
        terminal.shows("\nready")
        terminal.press("C-c")
        terminal.shows("caught")
        os.kill(terminal.command_pid(), signal.SIGTERM)
        screen = terminal.shows("ended")
    assert screen.count("caught") == 1


def test_the_command_is_ended_when_hold_is_killed(trackd_daemon: Daemon, script: Script) -> None:
    command = script('echo "$$"; exec sleep 60')
    holding = start_trackctl("--endpoint", trackd_daemon.endpoint, "hold", command)
    assert holding.stdout is not None
    pid = int(holding.stdout.readline())
    holding.kill()
    holding.communicate(timeout=PATIENCE)
    wait_until(lambda: not Path(f"/proc/{pid}/cmdline").exists())


def test_a_command_is_ended_when_its_lease_is_lost(
    make_trackd_daemon: MakeDaemon, script: Script
) -> None:
    daemon = make_trackd_daemon(state_dir="")
    command = script("echo p1 >&3; read -r answer <&4; echo $answer; exec sleep 60")
    holding = start_trackctl("--endpoint", daemon.endpoint, "hold", command)
    assert holding.stdout is not None
    assert holding.stdout.readline() == "claimed p1\n"
    daemon.restart()  # it keeps no state, so that every session is lost
    _, err = holding.communicate(timeout=PATIENCE)
    assert holding.returncode == 128 + signal.SIGTERM
    assert "trackctl hold: lease 1 is lost; ending the command" in err


def test_a_command_is_ended_when_it_is_one_too_many(
    make_trackd_daemon: MakeDaemon, script: Script
) -> None:
    daemon = make_trackd_daemon(disconnect_threshold=0.1)
    command = script("echo p1 >&3; read -r answer <&4; echo $answer; exec sleep 60")
    holding = start_trackctl("--endpoint", daemon.endpoint, "hold", command)
    assert holding.stdout is not None
    assert holding.stdout.readline() == "claimed p1\n"
    with Tracker(daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p2"))
        assert first_lease(tracker).claim("p2")
        _, err = holding.communicate(timeout=PATIENCE)
    assert "the daemon advises to close this tunnel; ending the command" in err


def test_a_command_that_cannot_be_run_ends_with_126_before_a_lease_is_taken(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    plain = tmp_path / "not-executable"
    plain.write_text("#!/bin/sh\n")
    ran = hold(trackd_daemon, "--", str(plain))
    assert (ran.returncode, ran.stderr) == (
        126,
        f"trackctl hold: cannot run {plain}: it is not executable\n",
    )
    ran = hold(trackd_daemon, "--", str(tmp_path))
    assert (ran.returncode, ran.stderr) == (
        126,
        f"trackctl hold: cannot run {tmp_path}: it is a directory\n",
    )
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert tracker.status()["last_lease"] == 0


def test_a_script_without_its_interpreter_ends_with_126(
    trackd_daemon: Daemon, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    ran = hold(trackd_daemon, "--", str(script))
    assert ran.returncode == 126
    assert "its interpreter does not exist" in ran.stderr


def test_no_argument_of_the_command_can_be_seen_by_others(
    trackd_daemon: Daemon, script: Script
) -> None:
    command = script("echo ready; read -r end")
    holding = start_trackctl(
        *("--endpoint", trackd_daemon.endpoint, "hold", "--", command, "PASSWORD=hunter2"),
        stdin=subprocess.PIPE,
    )
    assert holding.stdout is not None
    assert holding.stdout.readline() == "ready\n"
    with Tracker(trackd_daemon.endpoint) as tracker:
        seen = [row["labels"] for row in tracker.rows("sessions")]
    dumped = trackctl("--endpoint", trackd_daemon.endpoint, "dump", "-").stdout
    holding.communicate("end\n", timeout=PATIENCE)
    assert {"command": Path(command).name} in seen
    assert "hunter2" not in dumped


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--", "no-such-command"], 127, "there is no command 'no-such-command'"),
        (["--fd", "4", "--", "true"], 2, "--fd and --reply-fd must differ"),
        ([], 2, "Missing argument"),
    ],
)
def test_wrong_usage_takes_no_lease(
    trackd_daemon: Daemon, arguments: list[str], code: int, words: str
) -> None:
    ran = hold(trackd_daemon, *arguments)
    assert ran.returncode == code
    assert words in ran.stderr
    with Tracker(trackd_daemon.endpoint) as tracker:
        assert tracker.status()["last_lease"] == 0


def test_a_file_that_is_no_program_ends_with_126(trackd_daemon: Daemon, tmp_path: Path) -> None:
    rubbish = tmp_path / "rubbish"
    rubbish.write_bytes(b"\x00rubbish")
    rubbish.chmod(0o755)
    ran = hold(trackd_daemon, str(rubbish))
    assert ran.returncode == 126
    assert f"cannot run {rubbish}: Exec format error" in ran.stderr


def test_hold_ends_with_3_when_there_is_no_daemon(trackd_daemon: Daemon, script: Script) -> None:
    trackd_daemon.stop()
    ran = hold(trackd_daemon, script("echo ran"))
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "no trackd daemon" in ran.stderr


def test_the_documented_agent_in_the_shell_serves_until_its_tunnel_closes(
    trackd_daemon: Daemon, script: Script, tmp_path: Path
) -> None:
    on_path = tmp_path / "trackctl"
    on_path.write_text(f'#!/bin/sh\nexec {shlex.join(TRACKCTL)} "$@"\n')
    on_path.chmod(0o755)
    tunnel = script(
        """
        echo p1.example.com p1
        echo '{"proxies": [{"metadata": {"name": "p1"}}, {"metadata": {"name": "p2"}}]}'
        echo no JSON
        until [ -e SECOND ]; do sleep 0.1; done
        while :; do
            echo '{"proxies": [{"metadata": {"name": "p3"}}]}'
            sleep 0.1
        done""".replace("SECOND", str(tmp_path / "second"))
    )
    agent = subprocess.Popen(
        [REPOSITORY / "docs" / "examples" / "shell_agent.sh", tunnel],
        env=PLAIN
        | {"TRACKD_ENDPOINT": trackd_daemon.endpoint, "PATH": f"{tmp_path}:{PLAIN['PATH']}"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert agent.stdout is not None
        assert agent.stdout.readline() == "serving p1 with lease 1\n"
        with Tracker(trackd_daemon.endpoint) as tracker:
            wait_until(lambda: tracker.status()["tracked"] == 2)
            assert tracker.is_claimed("p1")
            trackd_daemon.stop()
            (tmp_path / "second").touch()
            trackd_daemon.start()
            wait_until(lambda: tracks(tracker, 3))
            assert tracker.is_claimed("p1"), "its tunnel survived a bad line and a restart"
    finally:
        os.killpg(agent.pid, signal.SIGTERM)
        agent.communicate(timeout=PATIENCE)


def test_gossip_feeds_a_file_or_standard_input(trackd_daemon: Daemon, tmp_path: Path) -> None:
    message = {"proxies": [{"metadata": {"name": f"p{i}"}, "ggen": 3} for i in range(2500)]}
    file = tmp_path / "discovery.json"
    file.write_text(json.dumps(message))
    fed = trackctl("--endpoint", trackd_daemon.endpoint, "gossip", str(file))
    assert (fed.returncode, fed.stdout) == (0, "2500 proxies fed\n"), fed.stderr
    one = '{"proxies": [{"metadata": {"name": "q"}, "gid": "g"}]}'
    piped = trackctl("--endpoint", trackd_daemon.endpoint, "gossip", "--json", text=one)
    assert json.loads(piped.stdout) == {"proxies": 1}
    with Tracker(trackd_daemon.endpoint) as tracker:
        groups = {each["group"]: each for each in tracker.status()["groups"]}
    assert (groups[""]["tracked"], groups[""]["generation"]) == (2500, 3)
    assert groups["g"]["tracked"] == 1


def test_gossip_may_be_the_names_of_proxies(trackd_daemon: Daemon) -> None:
    command = ("--endpoint", trackd_daemon.endpoint, "gossip")
    fed = trackctl(*command, "--names", "p1", "p2", "--ttl=60", "--group=g", "--generation=3")
    assert (fed.returncode, fed.stdout) == (0, "2 proxies fed\n")
    with Tracker(trackd_daemon.endpoint) as tracker:
        rows = {row["name"]: row for row in tracker.rows("proxies")}
        assert rows.keys() == {"p1", "p2"}
        assert (rows["p1"]["group"], rows["p1"]["generation"]) == ("g", 3)
        left = rows["p1"]["expires"] - boottime()
        assert 0 < left <= 60
    for wrong, sentence in (
        (("--names",), "--names needs the names of proxies"),
        (("--names", "p1", "--follow"), "excludes --follow"),
        (("p1", "p2"), "are these names of proxies? (--names)"),
        (("--ttl=3",), "--group, --generation, --ttl, --terminating and --address are for --names"),
        (("/nowhere/at/all",), "No such file or directory"),
    ):
        refused = trackctl(*command, *wrong)
        assert refused.returncode == 2, wrong
        assert sentence in refused.stderr
    refused = trackctl(*command, "--names", "")
    assert (refused.returncode, refused.stderr) == (1, "trackctl: proxies[0].name is empty\n")


@pytest.mark.rule(15)
def test_gossip_may_say_that_proxies_are_terminating(trackd_daemon: Daemon) -> None:
    command = partial(trackctl, "--endpoint", trackd_daemon.endpoint)
    with Tracker(trackd_daemon.endpoint) as tracker:
        tracker.track_expected(Proxy("p1"), Proxy("p2"))
        command("gossip", "--names", "p2", "--ttl", "60", "--terminating")
        rows = {row.name: row for row in tracker.snapshot().proxies}
        assert (rows["p2"].terminating, rows["p2"].desired) == (True, False)
        listed = json.loads(command("proxies", "--json").stdout)
        assert {row["name"]: row["why"] for row in listed["proxies"]} == {
            "p1": None,
            "p2": "terminating",
        }
        assert "it is terminating" in command("explain", "p2").stdout
        command("gossip", "--names", "p2", "--not-terminating")
        # A mark changes once a second at most; then the last word counts.
        wait_until(lambda: not any(row.terminating for row in tracker.snapshot().proxies))


def test_gossip_that_is_followed_is_fed_line_by_line(trackd_daemon: Daemon) -> None:
    feeding = start_trackctl(
        "--endpoint", trackd_daemon.endpoint, "gossip", "--follow", stdin=subprocess.PIPE, bufsize=1
    )
    assert feeding.stdin is not None
    with Tracker(trackd_daemon.endpoint) as tracker:
        for count in range(1, 3):
            feeding.stdin.write(f'{{"proxies": [{{"metadata": {{"name": "p{count}"}}}}]}}\n\n')
            wait_until(partial(tracks, tracker, count))
    feeding.communicate(timeout=PATIENCE)
    assert feeding.returncode == 0


def test_gossip_that_is_followed_survives_bad_lines_and_a_daemon_that_is_away(
    trackd_daemon: Daemon,
) -> None:
    feeding = start_trackctl(
        "--endpoint", trackd_daemon.endpoint, "gossip", "--follow", stdin=subprocess.PIPE, bufsize=1
    )
    assert feeding.stdin is not None
    assert feeding.stdout is not None
    assert feeding.stderr is not None
    feeding.stdin.write("no JSON\n[1]\n" + gossip_of("p1"))
    assert "line 1 is skipped: the discovery payload is not JSON" in feeding.stderr.readline()
    assert "line 2 is skipped: " in feeding.stderr.readline()
    assert feeding.stdout.readline() == "1 proxy fed\n"
    trackd_daemon.stop()
    feeding.stdin.write(gossip_of("p2"))
    assert "gossip is kept until it can be fed" in feeding.stderr.readline()
    feeding.stdin.write(gossip_of("p3", "p2"))
    trackd_daemon.start()
    with Tracker(trackd_daemon.endpoint) as tracker:
        wait_until(lambda: tracks(tracker, 3))
        feeding.stdin.write(gossip_of("p4"))
        wait_until(lambda: tracks(tracker, 4))
    _, err = feeding.communicate(timeout=PATIENCE)
    assert (feeding.returncode, err) == (0, "")


def test_gossip_that_is_followed_may_begin_before_the_daemon(trackd_daemon: Daemon) -> None:
    trackd_daemon.stop()
    feeding = start_trackctl(
        "--endpoint", trackd_daemon.endpoint, "gossip", "--follow", stdin=subprocess.PIPE, bufsize=1
    )
    assert feeding.stdin is not None
    assert feeding.stderr is not None
    assert "no daemon" in feeding.stderr.readline()
    feeding.stdin.write(gossip_of("p1"))
    trackd_daemon.start()
    with Tracker(trackd_daemon.endpoint) as tracker:
        wait_until(lambda: tracks(tracker, 1))
    feeding.communicate(timeout=PATIENCE)
    assert feeding.returncode == 0


def test_gossip_that_could_not_be_fed_at_its_end_is_an_error(trackd_daemon: Daemon) -> None:
    trackd_daemon.stop()
    fed = trackctl(
        *("--endpoint", trackd_daemon.endpoint, "--timeout", "0.2", "gossip", "--follow"),
        text=gossip_of("p1"),
    )
    assert fed.returncode == 3
    assert "trackctl: 1 proxy could not be fed\n" in fed.stderr


def gossip_of(*names: str) -> str:
    return json.dumps({"proxies": [{"metadata": {"name": name}} for name in names]}) + "\n"


def test_gossip_that_is_none_is_refused(trackd_daemon: Daemon) -> None:
    wrong = trackctl("--endpoint", trackd_daemon.endpoint, "gossip", text="[1]")
    assert wrong.returncode == 1
    assert "trackctl: the discovery payload must be an object" in wrong.stderr


def tracks(tracker: Tracker, count: int) -> bool:
    return bool(tracker.status()["tracked"] == count)


def first_lease(tracker: Tracker) -> Lease:
    lease = tracker.try_acquire()
    assert lease is not None
    return lease
