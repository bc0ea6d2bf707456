"""The tour of docs/incidents.md: each incident happens, and two commands at the most find it."""

from __future__ import annotations

import getpass
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.support import PATIENCE
from helpers.trackctl import PLAIN

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = REPOSITORY / "docs" / "incidents"

# What differs from one run to the next, and from one user to the other.
_VARIES = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}"), "TIME"),
    (re.compile(r"\b\d+[smhd]( \d+[smh])?\b"), "AGE"),
    (re.compile(r"[\d.]+ [kM]?B\b"), "SIZE"),
    (re.compile(rf"\b{re.escape(getpass.getuser())}\b"), "root"),
    (re.compile(r"\b\d{3,}\b"), "N"),
    (re.compile(r" +"), " "),
    (re.compile(r" \d+ AGE process"), " N AGE process"),  # requests that wait are sent again
)


class Incident(NamedTuple):
    """A chapter of the tour."""

    title: str
    script: str
    shown: list[tuple[str, str]]  # commands, and what the document says they print


def incidents() -> Iterator[Incident]:
    page = (REPOSITORY / "docs" / "incidents.md").read_text()
    for chapter in page.split("\n## ")[1:]:
        blocks = re.findall(
            r"^```console\n\$ ([^\n]*)\n(.*?)^```$", chapter, re.DOTALL | re.MULTILINE
        )
        (script, nothing), *shown = blocks
        assert not nothing, "what it prints is not shown"
        yield Incident(chapter.partition("\n")[0], script, shown)


TOUR = list(incidents())


def comparable(output: str) -> list[str]:
    for pattern, word in _VARIES:
        output = pattern.sub(word, output)
    return output.splitlines()


def test_the_tour_has_seven_incidents_and_each_of_the_scripts() -> None:
    assert len(TOUR) == 7
    scripts = {f"python {path.relative_to(REPOSITORY)}" for path in SCRIPTS.glob("*.py")}
    assert scripts - {"python docs/incidents/stage.py"} == {each.script for each in TOUR}


@pytest.mark.parametrize("incident", TOUR, ids=lambda incident: incident.title)
def test_an_incident_is_found_by_the_commands_and_they_print_what_is_shown(
    incident: Incident,
) -> None:
    assert 1 <= len(incident.shown) <= 2
    environ = PLAIN | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with subprocess.Popen(
        incident.script.split(),
        cwd=REPOSITORY,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as played:
        assert played.stdout is not None
        told = played.stdout.readline()
        assert told.startswith("export TRACKD_ENDPOINT="), told
        environ["TRACKD_ENDPOINT"] = told.strip().partition("=")[2]
        for command, shown in incident.shown:
            assert command.startswith("trackctl ")
            ran = subprocess.run(
                command.split(),
                cwd=REPOSITORY,
                env=environ,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
                check=True,
            )
            assert comparable(ran.stdout + ran.stderr) == comparable(shown)
        played.communicate("\n", timeout=PATIENCE)
    assert played.returncode == 0
