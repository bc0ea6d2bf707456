"""The sockets for claims: who may speak, and that no helper holds up another."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import pytest

from helpers.hosts import needs_root
from helpers.support import PATIENCE
from trackd_client.cli import claim_socket
from trackd_client.cli.claim_socket import ClaimServer, claim_directory
from trackd_client.cli.quick_claim import ask

#: Asks as another user, and says what it got.
STRANGER = """
import os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
asking = socket.socket(socket.AF_UNIX)
asking.settimeout(20)
try:
    asking.connect(sys.argv[1])
    asking.sendall(b"p1\\n")
    print(asking.recv(100))
except OSError as error:
    print(type(error).__name__)
"""


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory, and the one for sockets is made in it."""
    with tempfile.TemporaryDirectory(prefix="trackd-") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        yield Path(directory)


def fail(sentence: str) -> None:
    raise AssertionError(sentence)


def serve(path: Path, visit: Callable[[], Coroutine[None, None, None]]) -> list[list[str]]:
    """Serve a socket while it is visited, and return what was claimed."""
    claims = []

    async def claim(principals: list[str]) -> str:
        claims.append(principals)
        return f"claimed {principals[0]}" if principals else "refused"

    async def run() -> None:
        async with ClaimServer(path, claim):
            await visit()

    asyncio.run(run())
    assert not path.exists()
    return claims


def test_a_helper_gets_one_reply_to_one_line(place: Path) -> None:
    path = place / "7"

    async def visit() -> None:
        assert await asyncio.to_thread(ask, str(path), ["p1", "p2"], PATIENCE) == "claimed p1"
        assert await asyncio.to_thread(ask, str(path), [], PATIENCE) == "refused"

    assert serve(path, visit) == [["p1", "p2"], []]


def test_a_line_without_an_end_claims_nothing(place: Path) -> None:
    path = place / "7"

    async def visit() -> None:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"p1")
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()

    assert serve(path, visit) == []


def test_helpers_that_hang_are_hung_up_on_and_others_are_served(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "7"
    monkeypatch.setattr(claim_socket, "_PATIENCE", 0.2)

    async def visit() -> None:
        hanging = [
            await asyncio.open_unix_connection(path) for _ in range(claim_socket._MOST_HELPERS)
        ]
        for reader, writer in hanging:
            assert await reader.read() == b""
            writer.close()
        assert await asyncio.to_thread(ask, str(path), ["p1"], PATIENCE) == "claimed p1"

    assert serve(path, visit) == [["p1"]]


def test_the_end_of_a_run_does_not_wait_for_its_helpers(place: Path) -> None:
    path = place / "7"
    with socket.socket(socket.AF_UNIX) as helper:
        helper.settimeout(PATIENCE)

        async def visit() -> None:
            helper.connect(str(path))
            await asyncio.sleep(0)

        assert serve(path, visit) == []


@needs_root
@pytest.mark.parametrize("is_open", [True, False])
def test_another_user_cannot_claim(place: Path, is_open: bool) -> None:
    place.chmod(0o755)
    with claim_directory(fail) as directory:
        assert directory is not None
        path = directory / "7"

        async def visit() -> None:
            if is_open:  # a mistake that should not matter
                directory.chmod(0o777)
                path.chmod(0o777)
            asking = [sys.executable, "-c", STRANGER, str(path)]
            done = await asyncio.to_thread(
                subprocess.run, asking, capture_output=True, text=True, timeout=60, check=True
            )
            assert "claimed" not in done.stdout
            assert is_open or done.stdout == "PermissionError\n"

        assert serve(path, visit) == []


def test_a_directory_is_there_for_its_owner_only_and_removed_at_the_end(place: Path) -> None:
    with claim_directory(fail) as first, claim_directory(fail) as second:
        assert first is not None
        assert second is not None
        assert {first, second} == set(place.iterdir())
        assert first.stat().st_mode & 0o777 == 0o700
    assert not list(place.iterdir())


def test_what_a_crash_has_left_is_removed_and_what_others_own_is_not(place: Path) -> None:
    left = place / "trackctl-claims-left"
    left.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(left / "7"))
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").touch()
    (place / "trackctl-claims-link").symlink_to(elsewhere)
    with claim_directory(fail) as first:
        assert not left.exists()
        with claim_directory(fail):
            assert first is not None
            assert first.exists()
    assert (elsewhere / "file").exists()


def test_without_a_place_for_sockets_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []

    def refuse(**_: object) -> str:
        raise PermissionError("no")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with claim_directory(said.append) as directory:
        assert directory is None
    assert said == ["trackctl claim cannot be used: no"]


def test_a_place_whose_path_is_too_long_for_a_socket_is_not_taken(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = place / ("x" * 60)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    assert claim_socket.find_root() == place
