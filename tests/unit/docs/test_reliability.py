"""docs/reliability.md names tests that exist, and one for each promise."""

from __future__ import annotations

import re
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
PAGE = (REPOSITORY / "docs" / "reliability.md").read_text()


def test_each_test_that_the_page_names_exists() -> None:
    named = set(re.findall(r"`([tT]est\w+)`", PAGE))
    found: set[str] = set()
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        pairs = re.findall(
            r"^(?:async )?def (test_\w+)\(|^(Test\w+) = ", path.read_text(), re.MULTILINE
        )
        found.update(*pairs)
    assert len(named) > 30
    assert named <= found


def test_each_promise_is_tested() -> None:
    promised = set(re.findall(r"^\*\*(P\d+)\.", PAGE, re.MULTILINE))
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| `test", PAGE, re.MULTILINE | re.IGNORECASE)
    assert promised == {f"P{number}" for number in range(1, len(promised) + 1)}
    assert promised <= {promise for row in rows for promise in re.findall(r"P\d+", row)}
