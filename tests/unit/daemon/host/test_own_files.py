"""Opening files where others may have prepared the place."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trackd.host.own_files import check_own_path, find_directory_problem, name_user, open_own_file

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def test_a_file_is_created_for_its_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        os.close(open_own_file(tmp_path / "file"))
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600


def test_an_own_file_that_others_could_read_they_cannot_read_any_more(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "file").chmod(0o664)
    os.close(open_own_file(tmp_path / "file"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "file").read_text() == "kept"


def link(path: Path) -> None:
    path.with_name("target").write_text("precious")
    path.symlink_to("target")


def hard_link(path: Path) -> None:
    path.with_name("target").write_text("precious")
    path.hardlink_to(path.with_name("target"))


def foreign(path: Path) -> None:
    path.touch()
    os.chown(path, NOBODY, NOBODY)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (link, "is a symbolic link, and trackd follows none here"),
        (hard_link, r"has 2 names \(hard links\)"),
        (os.mkfifo, "is not a regular file"),
        (Path.mkdir, "is not a regular file"),
        pytest.param(foreign, "belongs to the user 'nobody'", marks=needs_root),
    ],
)
def test_what_others_prepared_is_refused_and_stays(
    tmp_path: Path, make: Callable[[Path], object], problem: str
) -> None:
    path = tmp_path / "file"
    make(path)
    for use in (open_own_file, check_own_path):
        with pytest.raises(OSError, match=f"file {problem}; move it away, or choose another place"):
            use(path)
    assert os.path.lexists(path)
    if (tmp_path / "target").exists():
        assert (tmp_path / "target").read_text() == "precious"


def test_a_private_directory_is_trusted(tmp_path: Path) -> None:
    for mode in (0o700, 0o755, 0o2750):
        tmp_path.chmod(mode)
        assert find_directory_problem(tmp_path) is None


@pytest.mark.parametrize(
    ("mode", "problem"),
    [
        (0o777, "can be written to by every user"),
        (0o1777, "can be written to by every user"),
        (0o770, "can be written to by the group"),
    ],
)
def test_a_directory_that_others_can_write_to_is_not(
    tmp_path: Path, mode: int, problem: str
) -> None:
    tmp_path.chmod(mode)
    found = find_directory_problem(tmp_path)
    assert found is not None
    assert found.startswith(problem)


@needs_root
def test_a_directory_of_somebody_else_is_not_and_no_link_of_theirs(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("mine")
    assert find_directory_problem(tmp_path / "link") is None
    os.chown(tmp_path / "link", NOBODY, NOBODY, follow_symlinks=False)
    for name in ("theirs", "link"):
        found = find_directory_problem(tmp_path / name)
        assert found == "belongs to the user 'nobody', who could replace the files in it"


def test_a_user_without_a_name_is_a_number() -> None:
    assert name_user(0) == "the user 'root'"
    assert name_user(3_999_999_999) == "the uid 3999999999"
