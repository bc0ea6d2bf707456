"""Links between documents resolve, and every document that a file names exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
DOCUMENTS = [
    *sorted(REPOSITORY.glob("*.md")),
    *sorted(REPOSITORY.glob("docs/**/*.md")),
    *sorted(REPOSITORY.glob("tests/**/*.md")),
]
#: Where people read the name of a document, beside the documents themselves.
SOURCES = (
    "Makefile",
    "client/**/*.py",
    "daemon/**/*.py",
    "docs/**/*",
    "systemd/*",
    "tests/**/*.py",
)
#: Installed, the documents have another folder; in the source they are in docs/.
NAMED = re.compile(r"\b(?:docs|share/doc/trackd)/((?:[\w-]+/)*[\w-]+\.(?:md|json|yml|py|sh|png))\b")


def prose(document: Path) -> str:
    """Return the text of a document without its fenced blocks."""
    return re.sub(r"(?ms)^```.*?^```$", "", document.read_text(encoding="utf-8"))


def anchors(document: Path) -> set[str]:
    """Return the anchors of a document's headings, as code hosts make them."""
    titles = re.findall(r"(?m)^#+ (.*)$", prose(document))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_every_link_leads_to_a_file_and_a_heading(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if "://" in target:
            continue  # the outside world, which tests do not reach
        file, _, heading = target.partition("#")
        found = document.parent / file if file else document
        assert found.exists(), target
        if heading:
            assert heading in anchors(found), target


@pytest.mark.parametrize("pattern", SOURCES)
def test_every_document_that_a_file_names_exists(pattern: str) -> None:
    files = [path for path in REPOSITORY.glob(pattern) if path.is_file() and path.suffix != ".png"]
    assert files, pattern
    for path in files:
        for name in NAMED.findall(path.read_text(encoding="utf-8")):
            assert (REPOSITORY / "docs" / name).exists(), f"{path}: docs/{name}"


def test_every_path_that_contributing_names_exists() -> None:
    text = prose(REPOSITORY / "CONTRIBUTING.md")
    walked = text.partition("## The commonest changes")[2].partition("\n## ")[0]
    named = r"(?<![\w/.])(?:client|daemon|docs|systemd|tests)/[\w./-]*\w/?"
    assert len(re.findall(named, walked)) > 25
    for path in re.findall(named, text):
        assert (REPOSITORY / path).exists(), path
