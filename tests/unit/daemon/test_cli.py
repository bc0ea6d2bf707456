"""`trackd` says what it does, what is wrong, and ends with the exit code that it documents."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import trackd
from helpers.support import unmeasured
from trackd import cli, signals
from trackd.config import exits
from trackd.config.settings import SETTINGS, Config
from trackd.host import logs
from trackd_client._version import __version__


def clean_environ() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if not name.startswith("TRACKD_")}


def trackd_process(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trackd", *args],
        check=False,
        capture_output=True,
        text=True,
        env=clean_environ() | environ,
        timeout=60,
    )


class Stub(ModuleType):
    """Takes the place of a module that the command hands over to, and keeps what it was given."""

    def __init__(self, name: str, result: int | Exception = 0) -> None:
        super().__init__(name)
        self.given: list[object] = []
        self.result = result

    def run(self, given: object, *_more: object) -> int:
        self.given.append(given)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    main = run


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Stub:
    stub = Stub("trackd.server")
    monkeypatch.setitem(sys.modules, "trackd.server", stub)
    monkeypatch.setattr(trackd, "server", stub, raising=False)
    monkeypatch.setattr(logs, "setup", lambda _level: None)
    monkeypatch.setattr(signals, "hold_signals", lambda: None)  # of this process
    for variable in set(os.environ) - set(clean_environ()):
        monkeypatch.delenv(variable)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    return stub


def failure(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[str, object]:
    """Run a command that must fail; return what it wrote on standard error, and its code."""
    with pytest.raises(SystemExit) as ended:
        cli.main(args)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("trackd: error: ")
    assert err.endswith("\n")
    return err.removeprefix("trackd: error: "), ended.value.code


# --- run ---------------------------------------------------------------------------------------


def test_run_hands_the_configuration_to_the_server(server: Stub) -> None:
    args = ["run", "--cluster-name", "example.com", "--proxy-expiry", "7", "--max-name", "77"]
    assert cli.main(args) == 0
    (config,) = server.given
    assert isinstance(config, Config)
    assert (config.cluster_name, config.proxy_expiry, config.max_name) == ("example.com", 7.0, 77)


def test_run_ends_with_the_server_s_exit_code(server: Stub) -> None:
    server.result = exits.FAILED
    assert cli.main(["run", "--cluster-name", "x"]) == exits.FAILED


def test_run_takes_a_negative_count_and_an_empty_directory(server: Stub) -> None:
    args = ["run", "--cluster-name", "x", "--connection-count", "-1", "--state-dir", ""]
    assert cli.main(args) == 0
    (config,) = server.given
    assert isinstance(config, Config)
    assert (config.connection_count, config.state_dir) == (-1, "")


@pytest.mark.parametrize("by_flag", [True, False])
def test_run_reads_the_file_named_by_flag_or_variable(
    server: Stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_flag: bool
) -> None:
    file = tmp_path / "t.toml"
    file.write_text('cluster_name = "from.file"\n')
    if not by_flag:
        monkeypatch.setenv("TRACKD_CONFIG", str(file))
    assert cli.main(["run", "--config", str(file)] if by_flag else ["run"]) == 0
    (config,) = server.given
    assert isinstance(config, Config)
    assert config.cluster_name == "from.file"


def test_run_logs_at_the_level_asked_for(server: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    levels: list[str] = []
    monkeypatch.setattr(logs, "setup", levels.append)
    assert cli.main(["run", "--cluster-name", "x", "--log-level", "warning"]) == 0
    assert levels == ["warning"]


@pytest.mark.parametrize("error", [exits.LockHeldError("held by"), exits.UnusableError("no sock")])
def test_a_daemon_that_cannot_start_says_why_with_the_code_of_the_reason(
    server: Stub, capsys: pytest.CaptureFixture[str], error: exits.StartError
) -> None:
    server.result = error
    assert failure(capsys, "run", "--cluster-name", "x") == (f"{error}\n", error.code)


def test_an_interrupt_before_the_daemon_serves_is_no_traceback(
    server: Stub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "run", interrupted)
    assert cli.main(["run", "--cluster-name", "x"]) == exits.INTERRUPTED


def test_without_pykka_run_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pykka'] = None\n"
        "from trackd.cli import main; main(['run', '--cluster-name', 'x', '--endpoint', '/x'])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=clean_environ(), timeout=60
    )
    assert done.stderr == (
        "trackd: error: the daemon needs pykka;"
        " run in a checkout of trackd: pip install '.[daemon]'\n"
    )
    assert done.returncode == exits.USAGE


def test_a_start_error_is_an_error_in_the_journal(tmp_path: Path) -> None:
    with (tmp_path / "journal").open("w+") as journal:
        place = os.fstat(journal.fileno())
        stream = f"{place.st_dev}:{place.st_ino}"
        done = subprocess.run(
            [sys.executable, "-m", "trackd", "run", "--proxy-expiry", "x", "--log-level", "loud"],
            check=False,
            stderr=journal,
            env=clean_environ() | {"JOURNAL_STREAM": stream},
            timeout=60,
        )
        assert done.returncode == exits.USAGE
        journal.seek(0)
        lines = journal.read().splitlines()
    assert len(lines) == 4
    assert [line[:3] for line in lines] == ["<3>"] * 4


def test_run_names_every_mistake_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    message, code = failure(capsys, "run", "--proxy-expiry", "x", "--log-level", "loud")
    assert message.startswith("the configuration has 3 problems:\n")
    assert "flag: --proxy-expiry: 'x' is not" in message
    assert "flag: --log-level: 'loud' is not" in message
    assert "the cluster's name is missing" in message
    assert code == exits.USAGE


def test_an_endpoint_that_nobody_can_serve_has_its_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    endpoint = "ipc:///" + "x" * 107
    message, code = failure(capsys, "run", "--cluster-name", "x", "--endpoint", endpoint)
    assert "is too long: the path has 108 bytes" in message
    assert code == exits.UNUSABLE


# --- usage -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "the following arguments are required: COMMAND (see trackd --help)"),
        (["rnu"], "invalid choice: 'rnu' (choose from"),
        (["--bogus", "run"], "no such flag: --bogus"),
        (["run", "--proxy-expirey", "3"], "no such flag: --proxy-expirey; did you mean --proxy-ex"),
        (["run", "--proxy-expirey=3"], "--proxy-expirey; did you mean --proxy-expiry? (see trackd"),
        (["run", "--proxy-exp", "3"], "no such flag: --proxy-exp"),
        (["run", "--zzz"], "no such flag: --zzz (see trackd run --help)"),
        (["run", "extra"], "unexpected argument: extra (see trackd run --help)"),
        (
            ["run", "--endpoint"],
            "argument --endpoint: expected one argument (see trackd run --help",
        ),
        (["check-config"], "arguments are required: FILE (see trackd check-config --help)"),
        (["demo", "--agents", "0"], "argument --agents: '0' is not a whole number from 1"),
        (["demo", "--proxies", "x"], "argument --proxies: 'x' is not a whole number from 1"),
        (["demo", "--seed", "x"], "argument --seed: invalid int value: 'x'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], args: list[str], sentence: str
) -> None:
    message, code = failure(capsys, *args)
    assert sentence in message
    assert message.count("\n") == 1
    assert code == exits.USAGE


def test_the_version_is_that_of_the_distribution() -> None:
    done = trackd_process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"trackd {__version__}\n", "")


def test_the_script_and_the_module_are_the_same_command() -> None:
    script = Path(sys.executable).with_name("trackd")
    done = subprocess.run([script, "--help"], check=True, capture_output=True, text=True)
    assert done.stdout == trackd_process("--help").stdout


@pytest.mark.parametrize("args", [["--help"], ["run", "--help"]])
def test_help_tells_every_exit_code_and_gives_examples(args: list[str]) -> None:
    done = trackd_process(*args, COLUMNS="100")
    assert done.returncode == 0
    assert "examples:\n  trackd run --cluster-name example.com" in done.stdout
    for code, meaning in exits.MEANINGS.items():
        assert f"  {code:<4} {meaning}\n" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_the_help_of_run_tells_every_setting_with_its_default() -> None:
    words = " ".join(trackd_process("run", "--help", COLUMNS="100").stdout.split())
    for setting in SETTINGS.values():
        assert f"{setting.flag} {setting.kind.metavar} " in words
        star = " *]" if setting.live else "]"
        assert f"{setting.help} [{setting.default}{star}" in words


@unmeasured
@pytest.mark.parametrize("args", [["--help"], ["run"], ["run", "--cluster-name"]])
def test_help_and_mistakes_load_nothing_heavy(args: list[str]) -> None:
    code = (
        "import sys; from trackd.cli import main\n"
        f"try: main({args!r})\n"
        "finally: print(sorted({'pykka', 'sqlite3', 'rich', 'trackd.server'} & {*sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


# --- check-config ------------------------------------------------------------------------------


def test_a_right_file_is_said_to_be_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.toml"
    file.write_text('cluster_name = "x"\n')
    assert cli.main(["check-config", str(file)]) == 0
    assert capsys.readouterr() == (f"{file} is valid\n", "")


def test_a_file_without_a_name_is_right_and_noted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.toml"
    file.write_text("dial_burst = 3\n")
    assert cli.main(["check-config", str(file)]) == 0
    assert "note: it names no cluster" in capsys.readouterr().out


def test_a_wrong_file_is_refused_with_all_that_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.toml"
    file.write_text('cluster_nam = "x"\nlog_level = "loud"\n')
    message, code = failure(capsys, "check-config", str(file))
    assert "cluster_nam is not a setting; did you mean cluster_name?" in message
    assert "log_level: 'loud' is not one of" in message
    assert code == exits.USAGE


def test_check_config_looks_at_nothing_but_the_file(tmp_path: Path) -> None:
    file = tmp_path / "t.toml"
    file.write_text('cluster_name = "x"\n')
    done = trackd_process("check-config", str(file), TRACKD_LOG_LEVEL="loud", XDG_RUNTIME_DIR="")
    assert (done.returncode, done.stderr) == (0, "")


# --- demo --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "given"),
    [
        ([], (6, 12, None, False)),
        (["--agents", "3", "--proxies", "4", "--seed", "5", "--plain"], (3, 4, 5, True)),
    ],
)
def test_demo_gets_its_options_and_gives_its_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    given: tuple[int, int, int | None, bool],
) -> None:
    stub = Stub("trackd.demo", 3)
    monkeypatch.setitem(sys.modules, "trackd.demo", stub)
    monkeypatch.setattr(trackd, "demo", stub, raising=False)
    assert cli.main(["demo", *args]) == 3
    (options,) = stub.given
    assert isinstance(options, argparse.Namespace)
    assert (options.agents, options.proxies, options.seed, options.plain) == given
