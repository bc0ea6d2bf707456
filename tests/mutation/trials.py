"""Runs fast tests against mutants, each in a process of its own. No file is changed."""

from __future__ import annotations

import gc
import importlib.machinery
import json
import os
import resource
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, Final
from unittest.mock import patch

import coverage
import hypothesis
import msgpack
import pykka
import pytest
import zmq

import trackd_client
from mutation.mutants import Mutant

REPOSITORY = Path(__file__).resolve().parents[2]
#: Loaded once for all mutants; the daemon itself is loaded by each process that needs it.
LOADED = (coverage, hypothesis, msgpack, pykka, trackd_client, zmq)
#: A fast test takes at most so many seconds of the processor, while its lines are recorded.
FAST = 0.5
#: The same of one that belongs to a module that is tried: more than any but the model tests take.
FAST_OF_OWN = 20.0
#: So many seconds of the tests of other modules are spent on a mutant, the quickest tests first.
OTHERS = 3.0
#: How many seconds of the processor a test may take before it counts as hanging: so many, and so
#: many times what it took without a mistake.
HANGS = 3.0, 10.0
#: The same of all tests of a mutant together, by the clock.
WAITS = 60.0, 10.0
#: A fixture of all tests that costs more than most of them, and finds no mistake of this kind.
LOOKS_FOR_PROCESSES = "nothing_is_left_behind"
#: Tests that belong to a module of the daemon beside those of its own file: what their names begin
#: with.
BELONG: Final[dict[str, list[str]]] = {
    "daemon/trackd/rules/aliases.py": ["tests/unit/daemon/state/test_follow.py"],
    "daemon/trackd/state/counters.py": ["tests/unit/daemon/operations/test_metrics.py"],
    "daemon/trackd/state/decide.py": [
        f"tests/unit/daemon/state/test_{name}.py"
        for name in ("gossip", "offers", "follow", "pauses", "marking", "aiming", "tunnels")
    ],
    "daemon/trackd/state/gossip.py": [
        f"tests/unit/daemon/state/test_{name}.py" for name in ("decide", "marking", "aiming")
    ],
    "daemon/trackd/state/restore.py": [
        *(
            f"tests/unit/daemon/state/test_{name}.py"
            for name in ("decide", "offers", "follow", "pauses", "marking", "aiming", "tunnels")
        ),
        "tests/unit/daemon/storage/test_v1.py",
    ],
}
#: Bytes that a test may fill.
MEMORY = 4 << 30

KILLED, SURVIVED, TIMED_OUT = "killed", "survived", "timed out"
#: Internal: the function has to be loaded with its mistake.
_FRESH = "fresh"


@dataclass(frozen=True)
class Timing:
    """A fast test: the seconds that it takes, and the lines that it runs of each module."""

    seconds: float
    lines: dict[str, set[int]]


class _Measure:
    """A plugin of pytest: measures each test."""

    def __init__(self, modules: list[Path]) -> None:
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(path) for path in modules]
        )
        self.modules = modules
        self.seconds: dict[str, float] = {}
        self.is_slow = False

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.coverage.switch_context(item.nodeid)
        signal.signal(signal.SIGPROF, self.skip)
        self.is_slow = False
        is_own = any(belongs(item.nodeid, path) for path in self.modules)
        signal.setitimer(signal.ITIMER_PROF, FAST_OF_OWN if is_own else FAST)
        begun = time.process_time()
        result = yield
        seconds = time.process_time() - begun
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        self.seconds[item.nodeid] = inf if self.is_slow else seconds
        self.coverage.switch_context("")
        return result

    def skip(self, *_: object) -> None:
        self.is_slow = True
        pytest.skip("is not fast")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[Any]) -> None:
        if self.is_slow:
            call.excinfo = None  # wherever it was interrupted


class _Trial:
    """A plugin of pytest: runs chosen tests in their order, and ends with the first that fails."""

    def __init__(self, chosen: dict[str, Timing]) -> None:
        self.chosen = chosen

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self.choose(items)

    def choose(self, items: list[pytest.Item]) -> None:
        by_name = {item.nodeid: item for item in items}
        items[:] = [by_name[name] for name in self.chosen]
        for item in items:
            if isinstance(item, pytest.Function) and LOOKS_FOR_PROCESSES in item.fixturenames:
                item.fixturenames.remove(LOOKS_FOR_PROCESSES)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        signal.setitimer(signal.ITIMER_PROF, _most(HANGS, self.chosen[item.nodeid].seconds))
        return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[Any]) -> None:
        right = (pytest.skip.Exception, pytest.xfail.Exception)
        if call.excinfo is not None and not call.excinfo.errisinstance(right):
            os._exit(1)


class _Trials(_Trial):
    """A plugin of pytest: tries mutants of functions, each in a fork made after the collection."""

    def __init__(
        self, path: Path, mutants: list[tuple[Mutant, dict[str, Timing]]], out: int
    ) -> None:
        super().__init__({name: timing for _, each in mutants for name, timing in each.items()})
        self.path = path
        self.mutants = mutants
        self.out = out

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        functions = defaultdict(list)
        for each in gc.get_objects():
            if type(each) is FunctionType and each.__code__.co_filename == str(self.path):
                functions[each.__code__.co_name, each.__code__.co_firstlineno].append(each)
        for mutant, chosen in self.mutants:
            assert mutant.function is not None
            found = functions[mutant.function]
            code = _code_of(mutant.code(str(self.path)), mutant.function)
            outcome = _FRESH
            if found and all(each.__code__.co_freevars == code.co_freevars for each in found):
                pid = os.fork()
                if pid == 0:
                    _limit()
                    for function in found:
                        function.__code__ = code
                    self.chosen = chosen
                    self.choose(session.items)
                    return None
                outcome = _outcome(pid, chosen)
            os.write(self.out, f"{outcome}\n".encode())
        return True


def measure(modules: list[Path], tests: list[str]) -> dict[str, Timing]:
    """Run tests as they are, and return those that are fast."""
    with tempfile.TemporaryFile() as file:

        def work() -> int:
            plugin = _Measure(modules)
            plugin.coverage.start()
            # What a test that was skipped in its midst has left open is no matter.
            code = _pytest(tests, plugin, "-p", "no:unraisableexception")
            plugin.coverage.stop()
            lines: dict[str, dict[str, list[int]]] = {name: {} for name in plugin.seconds}
            for path in modules:
                found = plugin.coverage.get_data().contexts_by_lineno(str(path))
                for line, names in found.items():
                    for name in filter(None, names):
                        lines[name].setdefault(str(path), []).append(line)
            file.write(json.dumps({k: (v, lines[k]) for k, v in plugin.seconds.items()}).encode())
            file.flush()
            return code

        _, status = os.waitpid(_fork(work), 0)
        if status != 0:
            raise SystemExit(f"these fail without any mistake: {' '.join(tests)}")
        file.seek(0)
        return {
            name: Timing(seconds, {path: set(each) for path, each in lines.items()})
            for name, (seconds, lines) in json.loads(file.read()).items()
            if seconds != inf
        }


def outcomes(path: Path, mutants: list[Mutant], timings: dict[str, Timing]) -> Iterator[str]:
    """Try mutants of a module, and yield what has become of each, in their order.

    Only tests that run a line with the mistake are run.
    """
    todo = []
    for mutant in mutants:
        chosen = {
            name: timing
            for name, timing in timings.items()
            if timing.lines.get(str(path), set()).intersection(mutant.lines)
        }
        # What no test runs may run when a module is imported, and so for all tests.
        todo.append((mutant, chosen if mutant.function is not None else {}))
    swapped = _swapped(path, [(mutant, _some(path, each)) for mutant, each in todo if each])
    for mutant, chosen in todo:
        outcome = next(swapped) if chosen else _FRESH
        if outcome == _FRESH:
            outcome = _loaded(path, mutant, _some(path, timings))
        yield outcome


def _some(path: Path, timings: dict[str, Timing]) -> dict[str, Timing]:
    """Return the tests of a module, and others, as many as there is time for.

    Those of the module that are not fast come last. Of the others come first those that run a line
    of the module, and the quick ones.
    """
    own: dict[str, Timing] = {}
    others: dict[str, Timing] = {}
    slow: dict[str, Timing] = {}
    left = OTHERS
    for name, timing in sorted(
        timings.items(), key=lambda each: (str(path) not in each[1].lines, each[1].seconds)
    ):
        if belongs(name, path):
            (own if timing.seconds <= FAST else slow)[name] = timing
        elif timing.seconds <= FAST and (left := left - timing.seconds) > 0.0:
            others[name] = timing
    return own | others | slow


def belongs(test: str, path: Path) -> bool:
    """Return whether a test belongs to a module, so that it is run even when it is not fast."""
    name = str(path.relative_to(REPOSITORY))
    return f"/test_{path.name}::" in test or test.startswith(tuple(BELONG.get(name, ())))


def _swapped(path: Path, todo: list[tuple[Mutant, dict[str, Timing]]]) -> Iterator[str]:
    """Yield the outcomes of mutants whose functions are exchanged in what is loaded."""
    if not todo:
        return
    reader, writer = os.pipe()
    plugin = _Trials(path, todo, writer)
    pid = _fork(lambda: _pytest(_files(plugin.chosen), plugin))
    os.close(writer)
    with os.fdopen(reader) as lines:
        yield from (line.strip() for line in lines)
    if os.waitpid(pid, 0)[1] != 0:
        raise SystemExit("pytest failed")


def _loaded(path: Path, mutant: Mutant, chosen: dict[str, Timing]) -> str:
    """Return the outcome of a mutant that is loaded instead of its module."""

    if not chosen:
        return SURVIVED

    def work() -> int:
        _limit()
        right = importlib.machinery.SourceFileLoader.get_code

        def get_code(loader: Any, name: str) -> Any:
            wrong = Path(loader.path).resolve() == path
            return mutant.code(str(path)) if wrong else right(loader, name)

        patch.object(importlib.machinery.SourceFileLoader, "get_code", get_code).start()
        return _pytest(_files(chosen), _Trial(chosen))

    return _outcome(_fork(work), chosen)


def _pytest(tests: list[str], plugin: object, *more: str) -> int:
    hypothesis.settings.register_profile("mutants", database=None, derandomize=True)
    hypothesis.settings.load_profile("mutants")
    quiet = ["-q", "-W", "ignore::pytest.PytestAssertRewriteWarning"]  # of what is LOADED
    options = ["-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist", *quiet]
    options += ["--rootdir", str(REPOSITORY), *more]
    return int(pytest.main([*options, *tests], plugins=[plugin]))


def _files(chosen: dict[str, Timing]) -> list[str]:
    return [str(REPOSITORY / name) for name in dict.fromkeys(x.split("::")[0] for x in chosen)]


def _fork(work: Callable[[], int]) -> int:
    """Return the pid of a process that does some work without a word."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            code = work()
        finally:
            os._exit(code)
    return pid


def _limit() -> None:
    os.setpgid(0, 0)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))


def _outcome(pid: int, chosen: dict[str, Timing]) -> str:
    """Return what has become of a mutant, at its end or when it takes too long."""
    end = time.monotonic() + _most(WAITS, sum(timing.seconds for timing in chosen.values()))
    code = None
    while code is None and time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
        else:
            time.sleep(0.005)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if code is None:
        os.waitpid(pid, 0)
    if code in {None, -signal.SIGPROF}:
        return TIMED_OUT
    return SURVIVED if code == 0 else KILLED


def _most(limit: tuple[float, float], seconds: float) -> float:
    return limit[0] + limit[1] * seconds


def _code_of(module: CodeType, function: tuple[str, int]) -> CodeType:
    """Return the code of the function with that name and first line."""
    todo = [module]
    while todo:
        code = todo.pop()
        if (code.co_name, code.co_firstlineno) == function:
            return code
        todo += [each for each in code.co_consts if isinstance(each, CodeType)]
    raise LookupError(function)
