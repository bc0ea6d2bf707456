"""What `make mutants` makes of a module, and what it says of those that tests notice or do not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mutation import __main__ as program
from mutation.mutants import mutants_of
from mutation.trials import REPOSITORY

SOURCE = """
@final(order=True)
def wait(late: bool = False, most: "int | 7" = 3):
    if late and most <= 2:
        note(most)
        return most - 1
    if most is None:
        return False
    most += 1
"""
QUEUE = "daemon/trackd/sessions/queue.py"


DEF = "module: def wait(late: bool={}, most: 'int | 7'={}):"


def test_each_mutant_has_one_mistake_and_none_is_in_an_annotation() -> None:
    assert [each.name for each in mutants_of(SOURCE)] == [
        "wait: final(order=True) -> final(order=False)",
        f"{DEF.format(False, 3)} -> {DEF.format(True, 3).removeprefix('module: ')}",
        f"{DEF.format(False, 3)} -> {DEF.format(False, 4).removeprefix('module: ')}",
        "wait: if late and most <= 2: -> if not (late and most <= 2):",
        "wait: if late and most <= 2: -> if late or most <= 2:",
        "wait: if late and most <= 2: -> if late and most < 2:",
        "wait: if late and most <= 2: -> if late and most <= 3:",
        "wait: note(most) -> pass",
        "wait: return most - 1 -> return None",
        "wait: return most - 1 -> return most + 1",
        "wait: return most - 1 -> return most - 2",
        "wait: if most is None: -> if most is not None:",
        "wait: return False -> return True",
        "wait: most += 1 -> pass",
        "wait: most += 1 -> most -= 1",
        "wait: most += 1 -> most += 2",
    ]
    assert [each.function for each in mutants_of(SOURCE)] == [None] * 3 + [("wait", 2)] * 13


def test_a_module_with_a_mistake_is_compiled_and_the_next_one_has_only_its_own() -> None:
    results = []
    for mutant in mutants_of("def f(x=1):\n    return x + 2\n"):
        module: dict[str, Any] = {}
        exec(mutant.code("f.py"), module)
        results.append(module["f"]())
    assert results == [4, None, -1, 4]


def run(*arguments: str, explained: Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from pathlib import Path; from mutation import __main__ as program;"
        "program.EXPLAINED = Path(sys.argv.pop(1)); program.main()"
    )
    return subprocess.run(
        [sys.executable, "-c", code, str(explained), *arguments],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_mistake_is_noticed_or_hangs_or_survives(tmp_path: Path) -> None:
    """It survives where no test runs it, and is an error until it is explained."""
    explained = tmp_path / "explained.txt"
    explained.write_text("")
    tests = "tests/unit/daemon/sessions"
    first = f"{tests}/test_queue.py::test_whoever_waits_longest_is_first"
    done = run(QUEUE, "--lines", "66-68", "--tests", first, explained=explained)
    hangs = "Queue.first: heapq.heappop(self._turns) -> pass"
    said = done.stdout.splitlines()[1:]
    assert said[0].endswith(f": timed out: {hangs}"), done
    assert said[1:] == [
        f"{QUEUE}: 10 mutants, 9 killed, 1 timed out",
        "all: 10 mutants, 9 killed, 1 timed out",
    ]
    assert done.returncode == 0

    other = [QUEUE, "--lines", "67-67", "--tests", f"{tests}/test_sessions.py"]
    done = run(*other, explained=explained)
    assert f": not explained: {hangs}" in done.stdout
    assert "all: 1 mutants, 1 not explained" in done.stdout
    assert done.returncode == 1

    explained.write_text(f"# Why.\n\n{QUEUE}: {hangs}  # nobody looks\n")
    done = run(*other, explained=explained)
    assert "all: 1 mutants, 1 explained" in done.stdout
    assert done.returncode == 0


def test_what_is_explained_but_no_mutant_any_more_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(program, "EXPLAINED", tmp_path / "explained.txt")
    program.EXPLAINED.write_text(f"{QUEUE}: Queue.last: return 1 -> return 2  # gone\n")
    total = program.try_all(REPOSITORY / QUEUE, [], {})
    assert total["stale"] == 1
    assert "Queue.last: return 1 -> return 2" in capsys.readouterr().out


def test_every_explanation_is_of_a_mutant() -> None:
    for module, reasons in program.explanations().items():
        names = {mutant.name for mutant in mutants_of((REPOSITORY / module).read_text())}
        assert reasons.keys() <= names, module
        assert all(reasons.values())
