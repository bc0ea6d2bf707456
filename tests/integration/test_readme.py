"""The documents are true: their commands run as they are written, and their tables are the code's.

`make demo` and `make test`, which the README names first, are run by `.ci/run`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, cast

import pytest

import trackd_client
from helpers.support import PATIENCE, wait_until
from trackd.config import exits
from trackd.config.settings import SETTINGS
from trackd_client import AsyncTracker, Event, Proxy, Tracker
from trackd_client.metrics import total
from trackd_client.testing import Daemon, MakeDaemon

REPOSITORY = Path(__file__).parents[2]

# What differs from one run to the next.
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\dT\S+"), "TIME"),
    (re.compile(r"\b(pid[= ]|up |revision |missing for )\w+"), r"\1N"),
    (re.compile(r"(ok, )[\d.]+ \w+, \d+( events kept)"), r"\1N\2"),
    (re.compile(r"ipc://\S+"), "ENDPOINT"),
    (re.compile(r" +\d+s$", re.MULTILINE), " N"),  # for how long a group had no tunnels
)


class Block(NamedTuple):
    """A fenced block of a document."""

    language: str
    text: str


def blocks(document: Path) -> list[Block]:
    fence = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
    return [Block(*found) for found in fence.findall(document.read_text())]


def blocks_of(document: Path, language: str) -> list[str]:
    return [block.text for block in blocks(document) if block.language == language]


def comparable(output: str) -> list[str]:
    """The lines of a command's output, without what differs; threads may swap or join them."""
    for pattern, word in _VARIES:
        output = pattern.sub(word, output)
    output = re.sub(r"(?<!^)(?=serving p\d)", "\n", output, flags=re.MULTILINE)
    return sorted(line.rstrip() for line in output.splitlines() if line.strip())


class Terminal:
    """Runs the one command of a `console` block as a person at a terminal of their own."""

    def __init__(self, block: str, cwd: Path, environ: dict[str, str]) -> None:
        prompt, _, self.expected = block.partition("\n")
        assert prompt.startswith("$ "), block
        self._output = cwd / f"output-{len(list(cwd.iterdir()))}"
        with self._output.open("wb") as output:
            self._shell = subprocess.Popen(
                ["bash", "-c", f"exec {prompt.removeprefix('$ ')}"],
                cwd=cwd,
                env=environ,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
            )

    def shows_what_the_document_says(self) -> None:
        try:
            wait_until(lambda: comparable(self._output.read_text()) == comparable(self.expected))
        except AssertionError:
            assert comparable(self._output.read_text()) == comparable(self.expected)

    def press_enter(self) -> int:
        self._shell.communicate(b"\n", timeout=PATIENCE)
        return self._shell.returncode

    def press_ctrl_c(self) -> int:
        self._shell.send_signal(signal.SIGINT)
        return self._shell.wait(timeout=PATIENCE)

    def close(self) -> None:
        if self._shell.poll() is None:
            self._shell.kill()
        self._shell.communicate()


@pytest.fixture
def desk() -> Iterator[Path]:
    """A directory in which the commands of the README find `.venv`, as after `make demo`."""
    with tempfile.TemporaryDirectory(prefix="readme-") as directory:
        Path(directory, ".venv").symlink_to(sys.prefix)
        yield Path(directory)


def test_the_readme_s_commands_do_what_they_are_shown_to_do(desk: Path) -> None:
    readme = REPOSITORY / "README.md"
    (agent,) = blocks_of(readme, "python")
    (desk / "agent.py").write_text(agent)
    # Apart from any daemon that this host may really have; nothing else is changed.
    environ = {name: text for name, text in os.environ.items() if not name.startswith("TRACKD_")}
    environ["TRACKD_ENDPOINT"] = f"ipc://{desk}/trackd.sock"
    terminals: list[Terminal] = []
    try:
        for block in blocks_of(readme, "console"):
            terminals.append(Terminal(block, desk, environ))
            terminals[-1].shows_what_the_document_says()
        daemon, first, _status = terminals
        second = Terminal(f"$ .venv/bin/python agent.py\n{first.expected}", desk, environ)
        terminals.append(second)
        with Tracker(environ["TRACKD_ENDPOINT"]) as tracker:
            wait_until(lambda: tracker.status()["waiting"] == 2)
        assert first.press_enter() == 0
        second.shows_what_the_document_says()
        assert second.press_enter() == 0
        assert daemon.press_ctrl_c() == 0
    finally:
        for terminal in terminals:
            terminal.close()


def test_the_readme_s_agent_keeps_its_proxies_tracked(
    make_trackd_daemon: MakeDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It feeds gossip before the old expires; with 0.2 for its minute, and 4 s for the 180."""
    daemon = make_trackd_daemon(proxy_expiry=4.0)
    (agent,) = blocks_of(REPOSITORY / "README.md", "python")
    assert agent.count("wait(60)") == 1
    monkeypatch.setenv("TRACKD_ENDPOINT", daemon.endpoint)
    began = threading.Event()
    enough = threading.Event()

    def wait_for_enter(_prompt: str) -> None:
        began.set()
        assert enough.wait(100)

    code = compile(agent.replace("wait(60)", "wait(0.2)"), "README.md", "exec")
    running = threading.Thread(target=exec, args=(code, {"input": wait_for_enter}))
    running.start()
    try:
        with Tracker() as tracker:
            wait_until(lambda: tracker.status()["claimed"] == 3)
            opened = tracker.status()["last_lease"]
            # Each of the three tunnels feeds five times a second: these take 5 s at the least.
            wait_until(lambda: gossip_messages(tracker) >= 75)
            assert tracker.status()["desired"] == 3
            assert tracker.status()["last_lease"] == opened, "it dials although none is missing"
    finally:
        enough.set()
        running.join()


def gossip_messages(tracker: Tracker) -> float:
    return total(tracker.metrics()["families"], "trackd_gossip_messages")


def test_the_readme_begins_with_what_ci_runs() -> None:
    (commands,) = blocks_of(REPOSITORY / "README.md", "sh")
    ran = (REPOSITORY / ".ci" / "run").read_text()
    for command in re.findall(r"make \w+", commands):
        assert command in ran


def test_the_map_in_contributing_is_the_tree() -> None:
    (layout,) = (b for b in blocks_of(REPOSITORY / "CONTRIBUTING.md", "") if "daemon/" in b)
    places = ["daemon/trackd", "client/trackd_client", "client/trackd_client/cli"]
    places += ["tests", "tests/benchmarks"]
    folders = {
        path.name
        for place in places
        for path in (REPOSITORY / place).iterdir()
        if path.name != "__pycache__" and path.is_dir() and [*path.glob("[!_.]*")]
    }
    assert set(re.findall(r"^ +(\w+)/ ", layout, re.MULTILINE)) == folders
    modules = {path.name for place in places[:2] for path in (REPOSITORY / place).glob("[!_]*.py")}
    told = re.findall(r"^  ((?:\w+\.py )+)", layout, re.MULTILINE)
    assert {name for names in told for name in names.split()} == modules


def test_contributing_says_why_each_dependency_is_here() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for extra in project["project"]["optional-dependencies"].values():
        wanted += extra
    names = {re.split(r"[^\w-]", requirement)[0] for requirement in wanted} - {"trackd"}
    told = {
        name for row in rows(REPOSITORY / "CONTRIBUTING.md", ".*") for name in row[0].split(", ")
    }
    assert names == told - {"package", "---"}


def rows(document: Path, first: str) -> list[list[str]]:
    """The rows of tables whose first cell matches, as the texts of their cells."""
    table = re.findall(r"^\| (.*) \|$", document.read_text(), re.MULTILINE)
    cells = ([cell.strip(" `") for cell in row.split("|")] for row in table)
    return [row for row in cells if re.fullmatch(first, row[0])]


def test_the_page_on_running_tells_every_setting_its_default_and_whether_it_is_live() -> None:
    told = rows(
        REPOSITORY / "docs" / "running.md",
        r"(\[(limits|quotas)\] )?(?!trackd_)[a-z]+_[a-z_]+|\[fleet\] [a-z_]+"
        r"|endpoint|history|http|targets",
    )
    expected = {each.key: (each.default, "yes" * each.live) for each in SETTINGS.values()}
    assert {key: (default.replace("`", ""), live) for key, default, live, _ in told} == expected


def test_the_page_on_running_tells_every_exit_code() -> None:
    told = rows(REPOSITORY / "docs" / "running.md", r"\d+")
    assert {int(code): meaning for code, meaning in told} == exits.MEANINGS


def test_the_client_page_names_every_error() -> None:
    told = (REPOSITORY / "docs" / "client.md").read_text()
    errors = trackd_client.errors
    names = [name for name, found in vars(errors).items() if isinstance(found, type)]
    for name in names:
        if issubclass(getattr(errors, name), errors.TrackdError):
            assert f"`{name}`" in told, name


class Done(Exception):
    """Ends an agent that would go on forever."""


@dataclass(frozen=True)
class Tunnel:
    """Stands for what a user's own `connect` returns."""

    principals: list[str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shut_down(self) -> None:
        pass

    def __iter__(self) -> Iterator[bytes]:
        yield b'{"proxies": [{"metadata": {"name": "p1"}}, {"metadata": {"name": "p2"}}]}'


def test_the_client_page_s_agents_run(
    trackd_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKD_ENDPOINT", trackd_daemon.endpoint)
    code = blocks_of(REPOSITORY / "docs" / "client.md", "python")
    others = ("pytest_plugins", "def test", ".events()", ".wait_covered(")
    ran = [block for block in code if not any(word in block for word in others)]
    for block in ran:
        reached = iter(["p1", "p2", "p1"])
        stop = threading.Event()

        def connect(reached: Iterator[str] = reached, stop: threading.Event = stop) -> Tunnel:
            name = next(reached, None)
            if name is None:
                stop.set()
                raise Done
            return Tunnel([f"{name}.example.com"])

        with Tracker() as tracker, suppress(Done):
            names = {"connect": connect, "tracker": tracker, "stop": stop}
            exec(compile(block, "client.md", "exec"), names)
        assert next(reached, None) is None or "connect()" not in block, "it did not dial"
    with Tracker() as tracker:
        status = tracker.status()
    assert (status["tracked"], status["claimed"], status["inflight"]) == (3, 0, 0)


def test_the_client_page_s_waits_end(
    trackd_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKD_ENDPOINT", trackd_daemon.endpoint)
    code = blocks_of(REPOSITORY / "docs" / "client.md", "python")
    (block,) = (block for block in code if ".wait_covered(" in block)
    with Tracker() as agent:
        agent.track_expected(Proxy("p1"), Proxy("p2"))
        assert agent.adopt("p1")
        assert agent.adopt("p2")
        exec(compile(block, "client.md", "exec"), {})


def test_the_client_page_s_watchers_run(
    trackd_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKD_ENDPOINT", trackd_daemon.endpoint)
    code = [b for b in blocks_of(REPOSITORY / "docs" / "client.md", "python") if ".events()" in b]
    watch_all, watch_async, follow = code
    kinds = []

    def tell(_revision: int, kind: str, _fields: object) -> None:
        kinds.append(kind)
        if kind == "snapshot":
            agent.track_expected(Proxy("p1"))
        elif kind == "proxy_tracked":
            raise Done

    with Tracker() as agent:
        with suppress(Done):
            exec(compile(watch_all, "client.md", "exec"), {"print": tell})
        assert kinds == ["snapshot", "session_opened", "proxy_tracked"]

        names: dict[str, Any] = {}
        exec(compile(follow, "client.md", "exec"), names)
        mirrors = names["follow"](agent)
        assert list(next(mirrors).proxies) == ["p1"]
        agent.track_expected(Proxy("p2"))
        assert list(next(mirrors).proxies) == ["p1", "p2"]

        exec(compile(watch_async, "client.md", "exec"), names)

        async def main() -> Event:
            async with AsyncTracker() as tracker:
                watching = asyncio.create_task(names["watch"](tracker))
                while not watching.done():
                    lease = await tracker.try_acquire()
                    assert lease is not None
                    await lease.release()
                return cast("Event", watching.result())

        assert asyncio.run(main()).kind == "lease_released"


def test_the_client_page_s_tests_pass(tmp_path: Path) -> None:
    code = blocks_of(REPOSITORY / "docs" / "client.md", "python")
    (plugin,) = (block for block in code if "pytest_plugins" in block)
    (tests,) = (block for block in code if "def test" in block)
    (tmp_path / "conftest.py").write_text(plugin)
    (tmp_path / "test_agent.py").write_text(tests)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert f"{tests.count('def test')} passed" in ran.stdout, ran.stdout + ran.stderr
