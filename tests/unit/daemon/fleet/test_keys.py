"""Keys of hosts: `trackd keys`, and whose files are believed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zmq

from helpers.support import unmeasured
from trackd.config import exits
from trackd.fleet import keys
from trackd.fleet.keys import KeyFileError, make_keys, read_public, read_secret

NOBODY = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


def trackd_keys(*args: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "trackd", "keys", *map(str, args)],
        check=False,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=60,
    )


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


# --- making --------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0, 0o077])
def test_a_pair_is_a_secret_file_for_its_owner_alone_and_a_public_one(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        made = make_keys("agent-7", tmp_path)
    finally:
        os.umask(before)
    assert made.secret_file == tmp_path / "agent-7.key"
    assert made.public_file == tmp_path / "agent-7.pub"
    assert (mode(made.secret_file), mode(made.public_file)) == (0o600, 0o644)
    pair = read_secret(made.secret_file)
    assert read_public(made.public_file) == (made.public,) == (pair.public,)
    assert zmq.curve_public(pair.secret.encode()).decode() == pair.public
    assert pair.secret not in made.public_file.read_text()
    assert pair.secret not in f"{pair!r} {pair}"


@pytest.mark.parametrize("there", ["agent-7.key", "agent-7.pub"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_there_already_stays_and_nothing_is_made(
    tmp_path: Path, there: str, kind: str
) -> None:
    if kind == "file":
        (tmp_path / there).write_text("precious")
    else:
        (tmp_path / there).symlink_to("elsewhere")
    with pytest.raises(KeyFileError, match=f"{there} is there already"):
        make_keys("agent-7", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [there]
    if kind == "file":
        assert (tmp_path / there).read_text() == "precious"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-a", ".a", "a b", "ä", "a\n", "x" * 129])
def test_a_name_that_is_no_plain_file_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(KeyFileError, match="cannot be a host's name"):
        make_keys(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a", "A_1.example.com", "0", "x" * 128])
def test_other_names_are_fine(tmp_path: Path, name: str) -> None:
    assert read_public(make_keys(name, tmp_path).public_file)


# --- reading -------------------------------------------------------------------------------------


def link(path: Path) -> None:
    path.rename(path.with_name("target"))
    path.symlink_to("target")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def give_away(path: Path) -> None:
    os.chown(path, NOBODY, -1)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (Path.unlink, "no such file"),
        (link, "symbolic link"),
        (fifo, "not a regular file"),
        (directory, "not a regular file"),
        (lambda path: path.chmod(0o620), "can be written to by others"),
        (lambda path: path.chmod(0o602), "can be written to by others"),
        pytest.param(give_away, "belongs to the user", marks=needs_root),
        (lambda path: path.write_bytes(b"x" * 5000), "not a file of keys"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "not a file of keys"),
        (lambda path: path.write_text(""), "is not a file of"),
        (lambda path: path.write_text("trackd-secret-key\n"), "KEY"),
        (lambda path: path.write_text("ssh-ed25519 AAAA\n"), "is not a file of"),
    ],
)
@pytest.mark.parametrize("read", [read_secret, read_public])
def test_what_is_no_file_of_keys_of_ours_is_an_error_that_names_it(
    tmp_path: Path,
    change: Callable[[Path], object],
    problem: str,
    read: Callable[[Path], object],
) -> None:
    made = make_keys("a", tmp_path)
    path = made.secret_file if read is read_secret else made.public_file
    read(path)
    change(path)
    if problem == "KEY" and read is read_public:
        problem = "has a secret key"
    with pytest.raises(KeyFileError, match=problem) as refused:
        read(path)
    assert str(path) in str(refused.value)


def test_a_secret_that_others_can_read_is_none(tmp_path: Path) -> None:
    path = make_keys("a", tmp_path).secret_file
    path.chmod(0o604)
    with pytest.raises(KeyFileError, match="can be read by others"):
        read_secret(path)


@needs_root
def test_root_may_give_a_secret_to_a_group_and_others_may_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_keys("a", tmp_path).secret_file
    path.chmod(0o440)  # as systemd hands out credentials
    assert read_secret(path)
    os.chown(path, NOBODY, -1)
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    with pytest.raises(KeyFileError, match="can be read by others"):
        read_secret(path)


def test_each_kind_of_file_says_so_when_the_other_is_wanted(tmp_path: Path) -> None:
    made = make_keys("a", tmp_path)
    with pytest.raises(KeyFileError, match="it has a public key"):
        read_secret(made.public_file)
    with pytest.raises(KeyFileError, match=r"belongs to its owner alone.*ends in \.pub"):
        read_public(made.secret_file)


def test_a_public_file_has_one_key_or_two(tmp_path: Path) -> None:
    made = [make_keys(name, tmp_path) for name in "abc"]
    both = tmp_path / "both.pub"
    both.write_text("".join(each.public_file.read_text() for each in made[:2]))
    assert read_public(both) == (made[0].public, made[1].public)
    both.write_text("".join(each.public_file.read_text() for each in made))
    with pytest.raises(KeyFileError, match="not a file of public keys"):
        read_public(both)


@pytest.mark.parametrize("text", ["", "x" * 39, "x" * 41, "ä" * 40, "'" * 40, "#" * 40, " " * 40])
def test_what_is_no_key_is_told_from_one(text: str) -> None:
    assert not keys.is_key(text)  # forty # are more than 32 bytes hold


# --- the command ---------------------------------------------------------------------------------


def test_make_and_show_say_what_they_did(tmp_path: Path) -> None:
    made = trackd_keys("make", "agent-7", "--out", tmp_path)
    public = (tmp_path / "agent-7.pub").read_text()
    secret = (tmp_path / "agent-7.key").read_text().split()[1]
    assert (made.returncode, made.stderr) == (0, "")
    assert made.stdout == (
        f"{tmp_path}/agent-7.key  secret: stays on agent-7\n"
        f"{tmp_path}/agent-7.pub  public: for those who shall know agent-7\n"
    )
    for name in ("agent-7.key", "agent-7.pub"):
        shown = trackd_keys("show", tmp_path / name)
        assert (shown.returncode, shown.stdout, shown.stderr) == (0, public, "")
        assert secret not in shown.stdout


def test_json(tmp_path: Path) -> None:
    made = json.loads(trackd_keys("make", "a", "--json", cwd=tmp_path).stdout)
    assert made == {
        "host": "a",
        "public_key": made["public_key"],
        "secret_file": "a.key",
        "public_file": "a.pub",
    }
    for name, kind in (("a.key", "secret"), ("a.pub", "public")):
        shown = json.loads(trackd_keys("show", name, "--json", cwd=tmp_path).stdout)
        assert shown == {"kind": kind, "public_keys": [made["public_key"]]}


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "arguments are required: ACTION (see trackd keys --help)"),
        (["make"], "arguments are required: HOST (see trackd keys make --help)"),
        (["show"], "arguments are required: FILE (see trackd keys show --help)"),
        (["make", "a", "--uot", "x"], "no such flag: --uot"),
        (["make", "../a"], "'../a' cannot be a host's name"),
        (["make", "a", "--out", "nowhere"], "cannot make nowhere/a.key: no such file or directory"),
        (["show", "nothing"], "cannot read nothing: no such file or directory"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    tmp_path: Path, args: list[str], sentence: str
) -> None:
    done = trackd_keys(*args, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (exits.USAGE, "")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_second_pair_of_the_same_name_is_refused(tmp_path: Path) -> None:
    assert trackd_keys("make", "a", cwd=tmp_path).returncode == 0
    before = (tmp_path / "a.key").read_bytes()
    again = trackd_keys("make", "a", cwd=tmp_path)
    assert again.returncode == exits.USAGE
    assert "a.key is there already" in again.stderr
    assert (tmp_path / "a.key").read_bytes() == before


@unmeasured
def test_it_needs_nothing_of_the_extra_for_fleets() -> None:
    code = (
        "import sys; sys.modules['grpc'] = sys.modules['google'] = None\n"
        "from trackd.cli import main\n"
        "try: main(['keys', 'show', '/nothing'])\n"
        "finally: print('pykka' in sys.modules, 'sqlite3' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, timeout=60
    )
    assert done.stderr == "trackd: error: cannot read /nothing: no such file or directory\n"
    assert done.stdout == "False False\n"
