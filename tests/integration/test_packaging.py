"""What `pip install` brings: both packages, and no dependency that is not needed."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from trackd_client import __version__

# pip fetches packages, and may have to wait for its registry.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

REPOSITORY = Path(__file__).parents[2]
SOURCES = {"trackd": REPOSITORY / "daemon", "trackd_client": REPOSITORY / "client"}
PATIENCE = 120.0  # seconds that one step may take


class Venv:
    """A virtual environment of its own, apart from the one that the tests run in."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.bin = directory / "bin"
        self.run(Path(sys.executable), "-m", "venv", directory)

    def run(self, program: Path, *args: object, **options: Any) -> str:
        """Run a program that must succeed; return what it wrote on standard output."""
        ran = self.try_to_run(program, *args, **options)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def try_to_run(
        self, program: Path, *args: object, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program, from the environment's own directory unless told otherwise."""
        return subprocess.run(
            [program, *map(str, args)],
            cwd=cwd or self._directory.parent,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )

    def python(self, *args: object, **options: Any) -> str:
        """Run its Python without anything that this process's environment adds to the path."""
        return self.run(self.bin / "python", "-I", *args, **options)

    def install(self, *what: object) -> None:
        """Install with pip."""
        self.python("-m", "pip", "install", "--quiet", *what)

    def installed(self) -> set[str]:
        """Return the names of what is installed, but for what every environment begins with."""
        listed = self.python("-m", "pip", "list", "--format=freeze").splitlines()
        return {line.partition("==")[0] for line in listed} - {"pip", "setuptools"}


class Built(NamedTuple):
    """The two archives, and the environment that made them."""

    venv: Venv
    wheel: Path
    sdist: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build both archives from the source tree, as `python -m build` would."""
    directory = tmp_path_factory.mktemp("built")
    venv = Venv(directory / "venv")
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    venv.install(*document["build-system"]["requires"])
    venv.python("-m", "hatchling", "build", "-d", directory, cwd=REPOSITORY)
    return Built(
        venv,
        directory / f"trackd-{__version__}-py3-none-any.whl",
        directory / f"trackd-{__version__}.tar.gz",
    )


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    """An environment after `pip install .`, which a person would type in a checkout."""
    venv = Venv(tmp_path_factory.mktemp("client") / "venv")
    venv.install(REPOSITORY)
    return venv


def source_files() -> Iterator[str]:
    """Yield every file of both packages, relative to where a package is found."""
    for package, root in SOURCES.items():
        for path in (root / package).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path.relative_to(root).as_posix()


def content(wheel: Path) -> dict[str, int]:
    """Return the checksum of every file in a wheel, but for its own list of them."""
    with zipfile.ZipFile(wheel) as archive:
        return {i.filename: i.CRC for i in archive.infolist() if not i.filename.endswith("/RECORD")}


def test_the_wheel_holds_both_packages_the_licence_and_nothing_else(built: Built) -> None:
    about = f"trackd-{__version__}.dist-info"
    extra = {f"{about}/{name}" for name in ("METADATA", "WHEEL", "entry_points.txt")}
    names = set(content(built.wheel))
    assert {"trackd/py.typed", "trackd_client/py.typed"} <= names
    assert names == {*source_files(), *extra, f"{about}/licenses/LICENSE"}


def test_the_source_archive_holds_what_people_read_install_and_test_with(built: Built) -> None:
    with tarfile.open(built.sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for package, root in SOURCES.items():
        assert {f"{root.name}/{n}" for n in source_files() if n.startswith(f"{package}/")} <= names
    read = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE"}
    needed = {"pyproject.toml", "PKG-INFO", ".gitignore"}  # the last two are hatchling's own wish
    tops = {name.partition("/")[0] for name in names}
    folders = {".ci", "client", "daemon", "docs", "systemd", "tests"}
    assert tops == {*folders, "Makefile", "Containerfile", *read, *needed}
    assert {"docs/running.md", "docs/protocol-examples.json", "tests/conftest.py"} <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_source_archive_gives_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    built.venv.python("-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=source)
    assert content(tmp_path / built.wheel.name) == content(built.wheel)


def test_installing_trackd_brings_the_client_with_pyzmq_and_msgpack_alone(client: Venv) -> None:
    assert client.installed() == {"trackd", "pyzmq", "msgpack"}
    code = "import sys, trackd_client; print(trackd_client.__version__, 'pykka' in sys.modules)"
    assert client.python("-c", code).split() == [__version__, "False"]


@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (["trackctl", "status"], ".[cli]"),
        (["trackd", "run", "--cluster-name", "example.com"], ".[daemon]"),
    ],
)
def test_a_command_without_its_extra_says_what_to_install(
    client: Venv, command: list[str], needed: str
) -> None:
    program, *args = command
    ran = client.try_to_run(client.bin / program, *args)
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert f"run in a checkout of trackd: pip install '{needed}'" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_each_extra_is_enough_for_its_command(built: Built, tmp_path: Path) -> None:
    venv = Venv(tmp_path / "venv")
    venv.install(f"{built.wheel}[daemon]")
    served = {"prometheus_client", "waitress"}  # of these alone the HTTP listener knows
    assert venv.installed() == {"trackd", "pyzmq", "msgpack", "pykka", *served}
    endpoint = f"ipc://{tmp_path}/trackd.sock"
    run = [venv.bin / "trackd", "run", "--cluster-name", "example.com", "--endpoint", endpoint]
    with subprocess.Popen(
        [*map(str, run)], stderr=subprocess.PIPE, text=True, cwd=tmp_path
    ) as daemon:
        try:
            assert daemon.stderr is not None
            assert "serving cluster=example.com" in daemon.stderr.readline()
            venv.install(f"{built.wheel}[cli]")
            told = venv.run(venv.bin / "trackctl", "--endpoint", endpoint, "status")
        finally:
            daemon.terminate()
    assert "no proxy is known" in told
    assert daemon.returncode == 0
