"""docs/rules.md, the code and the tests name the same rules, and the examples do what they show."""

from __future__ import annotations

import ast
import doctest
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
DOCUMENT = (REPOSITORY / "docs" / "rules.md").read_text(encoding="utf-8")

#: Every document that may cite a rule, and every module.
CITING = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "daemon/**/*.py", "client/**/*.py", "tests/**/*.py")
    for path in REPOSITORY.glob(pattern)
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def rules(document: str) -> list[int]:
    """Return the numbers of the rules that a document has a heading for, in its order."""
    return [int(number) for number in re.findall(r"^### Rule (\d+): ", document, re.MULTILINE)]


def cited(text: str) -> set[int]:
    """Return the numbers of the rules that a text cites, as in "rules 3, 4 and 7 to 9"."""
    found: set[int] = set()
    number = r"\d+(?:\s+to\s+\d+)?"
    for numbers in re.findall(rf"\b[Rr]ules?\s+({number}(?:(?:,|\s+and)\s+{number})*)", text):
        for first, last in re.findall(r"(\d+)(?:\s+to\s+(\d+))?", numbers):
            found.update(range(int(first), int(last or first) + 1))
    return found


def marks(node: ast.AST) -> Iterator[int]:
    """Yield the numbers of the markers `pytest.mark.rule(...)` in a piece of code."""
    for call in ast.walk(node):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.mark.rule":
            (argument,) = call.args
            assert isinstance(argument, ast.Constant)
            assert isinstance(argument.value, int)
            yield argument.value


def marked_tests(paths: Iterable[Path]) -> dict[int, list[str]]:
    """Return the tests of each rule: those marked with it, and those in a module that is."""
    found: dict[int, list[str]] = {}
    for path in paths:
        module = ast.parse(path.read_text(encoding="utf-8"))
        of_module = [
            number
            for statement in module.body
            if isinstance(statement, ast.Assign)
            and ast.unparse(statement.targets[0]) == "pytestmark"
            for number in marks(statement.value)
        ]
        for node in ast.walk(module):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                own = [number for each in node.decorator_list for number in marks(each)]
                assert node.name.startswith("test_") or not own, f"{node.name} is not a test"
                if node.name.startswith("test_"):
                    for number in {*own, *of_module}:
                        found.setdefault(number, []).append(f"{path.name}::{node.name}")
    return found


TESTED = marked_tests(sorted((REPOSITORY / "tests").rglob("test_*.py")))


def test_the_rules_are_numbered_without_a_gap_but_for_those_to_come() -> None:
    numbers = rules(DOCUMENT)
    assert numbers == sorted(set(numbers))
    assert set(range(1, max(numbers) + 1)) - set(numbers) <= {19}
    assert len(numbers) >= 14


@pytest.mark.parametrize("number", rules(DOCUMENT))
def test_every_rule_has_a_test_that_names_it(number: int) -> None:
    assert TESTED.get(number), f"no test is marked pytest.mark.rule({number})"


def test_every_marker_names_a_rule_of_the_document() -> None:
    assert set(TESTED) <= set(rules(DOCUMENT))


def test_a_rule_without_a_test_is_found(tmp_path: Path) -> None:
    """The check itself: only tests count, whether they or their module are marked."""
    one, whole, nothing = (tmp_path / f"test_{name}.py" for name in ("one", "whole", "nothing"))
    one.write_text("@pytest.mark.slow\n@pytest.mark.rule(1)\ndef test_a(): ...\n")
    whole.write_text(
        "pytestmark = [pytest.mark.rule(2)]\ndef helper(): ...\nasync def test_b(): ..."
    )
    nothing.write_text(
        "pytestmark = pytest.mark.rule(3)\n# @pytest.mark.rule(4)\ndef helper(): ...\n"
    )
    assert marked_tests([one, whole, nothing]) == {
        1: ["test_one.py::test_a"],
        2: ["test_whole.py::test_b"],
    }


@pytest.mark.parametrize("path", CITING, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_every_rule_that_is_cited_exists(path: Path) -> None:
    assert cited(path.read_text(encoding="utf-8")) <= set(rules(DOCUMENT))


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("by rule 6.", {6}),
        ("Rule 13: first", {13}),
        ("(rules 3, 4)", {3, 4}),
        ("rules 2, 6 and 8\nto 10", {2, 6, 8, 9, 10}),
        ("rules 1 to 3, and 7 more", {1, 2, 3}),
        ("a ruler 5, and rules", set()),
    ],
)
def test_citations_are_read_as_people_read_them(text: str, numbers: set[int]) -> None:
    assert cited(text) == numbers


# -- the examples ---------------------------------------------------------------------

SECTION = re.compile(r"^##+ (.+?)\n(.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [
    (heading, block) for heading, text in SECTION.findall(DOCUMENT) for block in BLOCK.findall(text)
]
EXAMPLES = [(heading, block) for heading, block in BLOCKS if block.startswith(">>>")]
#: What stands before every example.
(SETUP,) = (block for _, block in BLOCKS if not block.startswith(">>>"))


def test_every_rule_of_the_tracker_has_an_example() -> None:
    shown = {heading for heading, _ in EXAMPLES}
    every = {*range(1, 13), 14, 15, 16, 20}
    assert {number for heading in shown for number in cited(heading)} == every


@pytest.mark.parametrize(("heading", "example"), EXAMPLES, ids=[each for each, _ in EXAMPLES])
def test_an_example_does_what_it_shows(heading: str, example: str) -> None:
    names: dict[str, object] = {"clock": Clock()}
    exec(SETUP, names)
    parsed = doctest.DocTestParser().get_doctest(example, names, heading, "docs/rules.md", 0)
    assert len(parsed.examples) > 1
    said: list[str] = []
    doctest.DocTestRunner(verbose=False).run(parsed, out=said.append)
    assert not said, "".join(said)
