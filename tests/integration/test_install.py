"""`make install` beside a program that is in use, `make rollback`, and staging for packagers."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from pathlib import Path

import pytest

# pip builds and fetches packages.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 400.0
INTERVAL = 0.005  # seconds between two probes


class Place:
    """A prefix with everything that `make install` writes below it.

    Attributes:
        prefix: where the program is.
        home: the directory of the releases.
    """

    def __init__(self, directory: Path) -> None:
        self.prefix = directory / "final"
        self.home = self.prefix / "lib/trackd"
        self._variables = [
            f"PREFIX={self.prefix}",
            f"SYSTEMD_LIB={self.prefix}/systemd-lib",
            f"SYSCONFDIR={self.prefix}/etc",
            "ON_HOST=false",
        ]

    def make(self, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["make", *args, *self._variables],
            cwd=REPOSITORY,
            env={**os.environ, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def must_make(self, *args: str) -> None:
        ran = self.make(*args)
        assert ran.returncode == 0, ran.stdout + ran.stderr

    def release(self) -> str:
        return (self.home / "current").readlink().name

    def says(self) -> str:
        return subprocess.run(
            [self.prefix / "bin/trackd", "--version"], capture_output=True, text=True, check=True
        ).stdout

    def is_complete(self) -> bool:
        """Whether somebody who starts `trackd` at this moment gets a whole program."""
        try:
            program = (self.prefix / "bin/trackd").resolve(strict=True)
            interpreter = program.read_text().partition("\n")[0].removeprefix("#!")
            (package,) = program.parents[1].glob("lib/python3*/site-packages/trackd")
        except (OSError, ValueError):
            return False
        return os.access(interpreter, os.X_OK) and (package / "cli.py").exists()


class Probing:
    """Looks 200 times a second whether the program is complete."""

    def __init__(self, place: Place) -> None:
        self.complete: list[bool] = []
        self._place = place
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.complete.append(self._place.is_complete())

    def __enter__(self) -> list[bool]:
        self._thread.start()
        return self.complete

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def files_with(root: Path, text: str) -> list[Path]:
    return [
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and text.encode() in path.read_bytes()
    ]


def test_an_upgrade_builds_beside_switches_at_once_and_can_be_taken_back(tmp_path: Path) -> None:
    place = Place(tmp_path)
    assert not place.is_complete()
    stage = tmp_path / "stage"
    place.must_make("install", f"DESTDIR={stage}")
    staged = stage / place.prefix.relative_to("/")
    assert files_with(staged, str(stage)) == [], "paths of the staging directory"
    assert [*staged.rglob("cli*.pyc")]
    staged.rename(place.prefix)  # what a package manager does
    assert place.says().startswith("trackd ")
    first = place.release()

    # What fails on the way changes nothing, and leaves nothing behind.
    ran = place.make("install", PIP_NO_INDEX="1", PIP_FIND_LINKS="")
    assert ran.returncode != 0
    assert "nothing was installed or changed" in ran.stderr
    assert place.release() == first
    assert {path.name for path in place.home.iterdir()} == {first, "current"}

    with Probing(place) as complete:
        place.must_make("install")
    assert len(complete) > 100
    assert all(complete), f"{complete.count(False)} of {len(complete)} probes found no program"
    second = place.release()
    assert second != first
    assert place.says().startswith("trackd ")

    unit = place.prefix / "systemd-lib/systemd/system/trackd@.service"
    assert f"{place.prefix}/bin/trackd run" in unit.read_text()
    unit.write_text("of the newer release")
    with Probing(place) as complete:
        place.must_make("rollback")
    assert all(complete)
    assert place.release() == first
    assert place.says().startswith("trackd ")
    assert f"{place.prefix}/bin/trackd run" in unit.read_text(), (
        "the units are those of the release"
    )
    place.must_make("rollback")
    assert place.release() == second
    assert {path.name for path in place.home.iterdir()} == {first, second, "current", "previous"}

    place.must_make("uninstall")
    left = [path for path in place.prefix.rglob("*") if not path.is_dir()]
    assert left == []


def test_the_first_install_cannot_be_taken_back(tmp_path: Path) -> None:
    ran = Place(tmp_path).make("rollback")
    assert ran.returncode != 0
    assert "there is no previous release" in ran.stderr


def test_what_installed_documents_link_to_is_installed_too() -> None:
    recipe = (REPOSITORY / "Makefile").read_text()
    linked = [
        page.parent / target
        for page in (REPOSITORY / "docs").glob("*.md")
        for target in re.findall(r"\]\(([^)\s#:]+)", page.read_text())
    ]
    wanted = {
        path.relative_to(REPOSITORY)
        for link in linked
        for path in ([link] if link.is_file() else link.glob("*.*"))
    }
    installed = {
        path.relative_to(REPOSITORY)
        for pattern in re.findall(r"\bdocs/[\w/]*\*\.\w+", recipe)
        for path in REPOSITORY.glob(pattern)
    }
    assert {path.parent.name for path in wanted} == {"docs", "examples", "incidents", "ssh"}
    assert wanted - installed == set()
