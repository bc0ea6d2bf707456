"""The paths that the daemon created: what is its own, what is lost, and what may be removed."""

from __future__ import annotations

from pathlib import Path

from trackd.host.own_paths import OwnPaths


def test_a_file_is_own_as_long_as_it_is_the_one_that_was_noted(tmp_path: Path) -> None:
    own = OwnPaths()
    path, away = tmp_path / "file", tmp_path / "away"
    path.touch()
    assert not own.is_own(path), "it was never noted"
    own.add(path, "state")
    assert own.is_own(path)
    assert own.find_lost() == {}
    path.rename(away)
    assert own.find_lost() == {path: "state"}
    path.touch()
    assert own.find_lost() == {path: "state"}, "another file is there"
    away.replace(path)
    assert own.find_lost() == {}


def test_a_lost_directory_takes_its_files_with_it(tmp_path: Path) -> None:
    own = OwnPaths()
    (tmp_path / "place").mkdir()
    path = tmp_path / "place" / "file"
    path.touch()
    own.add(path, "lock")
    (tmp_path / "place").rename(tmp_path / "away")
    assert own.find_lost() == {path: "lock"}
    (tmp_path / "place").touch()
    assert own.find_lost() == {path: "lock"}


def test_a_link_to_the_own_file_is_not_the_own_file(tmp_path: Path) -> None:
    own = OwnPaths()
    path = tmp_path / "file"
    path.touch()
    own.add(path, "socket")
    path.rename(tmp_path / "away")
    path.symlink_to("away")
    assert own.find_lost() == {path: "socket"}
    own.remove(path)
    assert path.is_symlink()


def test_only_the_own_file_is_removed(tmp_path: Path) -> None:
    own = OwnPaths()
    mine, foreign, replaced = tmp_path / "mine", tmp_path / "foreign", tmp_path / "replaced"
    for path in (mine, foreign, replaced):
        path.touch()
    own.add(mine, "socket")
    own.add(replaced, "socket")
    replaced.rename(tmp_path / "away")
    replaced.write_text("precious")
    for path in (mine, foreign, replaced):
        own.remove(path)
    assert {path.name for path in tmp_path.iterdir()} == {"foreign", "replaced", "away"}
    assert own.find_lost() == {}, "a path that was removed is not looked at any more"


def test_permissions_are_noted_for_the_one_who_creates_the_file_again(tmp_path: Path) -> None:
    own = OwnPaths()
    path = tmp_path / "file"
    path.touch(mode=0o640)
    own.add(path, "socket")
    known = own.get(path)
    assert known is not None
    assert (known.mode, known.gid) == (0o640, path.stat().st_gid)
    own.discard(path)
    assert own.get(path) is None
