"""What `make mutants` makes of a module, and that the tests of a module notice a mistake."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from mutation.__main__ import REPOSITORY, fast_tests_of, run
from mutation.mutants import mutants_of

SOURCE = """
def wait(late: bool = False, most: "int | 7" = 3):
    if late and most <= 2:
        note(most)
        return most - 1
    most += 1
"""
QUEUE = REPOSITORY / "daemon/trackd/sessions/queue.py"


def test_each_mutant_has_one_mistake_and_none_is_in_an_annotation() -> None:
    mutants = mutants_of(SOURCE)
    right = ast.unparse(ast.parse(SOURCE)).splitlines()
    changed = []
    for mutant in mutants:
        lines = ast.unparse(mutant.tree).splitlines()
        changed += [line.strip() for line in lines if line not in right]
    assert sorted(changed) == sorted(
        [
            "def wait(late: bool=True, most: 'int | 7'=3):",
            "def wait(late: bool=False, most: 'int | 7'=4):",
            "if not (late and most <= 2):",
            "if late or most <= 2:",
            "if late and most < 2:",
            "if late and most <= 3:",
            "pass",
            "return None",
            "return most + 1",
            "return most - 2",
            "pass",
            "most -= 1",
            "most += 2",
        ]
    )


def test_a_mistake_is_noticed_and_the_module_as_it_is_passes() -> None:
    tests = [path for path in fast_tests_of(QUEUE) if Path(path).is_file()]
    assert run(QUEUE, None, tests, 300.0) == 0
    mutants = mutants_of(QUEUE.read_text())
    (mutant,) = [m for m in mutants if "self._turns[0][1] in self._waiters" in m.after][:1]
    assert run(QUEUE, mutant.tree, tests, 300.0) == pytest.ExitCode.TESTS_FAILED
