"""CURVE keys of hosts and candidates: `trackd keys`, and how the files of keys are read.

A pair of keys is two files. `NAME.key` has the secret key in one line and stays where it is used.
`NAME.pub` has the public key in one line, and is copied to those who shall know the owner by it. It
may have a second line with a second key, while the owner changes from one to the other.

Every file is checked when it is opened: who may have written it, and for a secret who can read it.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import stat
import struct
from pathlib import Path
from typing import Final, NamedTuple

import zmq
from zmq.utils import z85

from trackd.config import exits
from trackd.host.own_files import name_user

SECRET_SUFFIX: Final = ".key"  # noqa: S105 - the end of a name
PUBLIC_SUFFIX: Final = ".pub"
#: Characters of the name of a host or candidate.
MAX_NAME: Final = 128
#: Public keys that a file may have: that of today, and its successor.
MAX_KEYS: Final = 2

#: What a line begins with, so that nobody takes one kind of key for the other.
_SECRET: Final = "trackd-secret-key"  # noqa: S105
_PUBLIC: Final = "trackd-public-key"
_NAME: Final = re.compile(rf"[A-Za-z0-9_][A-Za-z0-9_.-]{{0,{MAX_NAME - 1}}}")
_MAX_BYTES: Final = 4096


class KeyFileError(exits.StartError):
    """A key or its file cannot be made or used; the message says why and what to do."""

    code = exits.USAGE


class KeyPair(NamedTuple):
    """A public and a secret key, each as 40 characters of Z85."""

    public: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.public!r})"  # a secret shall not get into a log


class MadeKeys(NamedTuple):
    """The files of a new pair of keys, and its public key."""

    secret_file: Path
    public_file: Path
    public: str


def check_name(name: str) -> str:
    """Return `name` when a host or candidate can have it: it is part of the names of files.

    Raises:
        KeyFileError: it cannot.
    """
    if not _NAME.fullmatch(name):
        raise KeyFileError(
            f"{name!r} cannot be a host's name: use 1 to {MAX_NAME} letters, digits, '.', '_' and"
            " '-', and begin with none of '.' and '-'"
        )
    return name


def make_keys(name: str, directory: Path) -> MadeKeys:
    """Make a pair of keys, and write its two files. Nothing is ever overwritten.

    Args:
        name: of the host or candidate.
        directory: where the files go; it must exist.

    Raises:
        KeyFileError: the name is not allowed, a file is there already, or cannot be written.
    """
    check_name(name)
    public, secret = _new_pair()
    made = MadeKeys(
        directory / f"{name}{SECRET_SUFFIX}", directory / f"{name}{PUBLIC_SUFFIX}", public
    )
    _write(made.secret_file, f"{_SECRET} {secret}\n", 0o600)
    try:
        _write(made.public_file, format_public(public), 0o644)
    except BaseException:
        made.secret_file.unlink()
        raise
    return made


def format_public(key: str) -> str:
    """Return the line of a public key, as it stands in its file."""
    return f"{_PUBLIC} {key}\n"


def read_secret(path: Path) -> KeyPair:
    """Return the pair of keys whose secret one is in a file.

    Raises:
        KeyFileError: it cannot be read, others could read it or have written it, or it has no
            secret key.
    """
    lines, found = _read(path)
    pair = _parse_secret(path, lines)
    _check_writers(path, found)
    # A file of root may be given to a group: so do systemd's credentials.
    if found.st_mode & (0o007 if found.st_uid == 0 else 0o077):
        raise KeyFileError(
            f"{path} can be read by others, so its key is no secret any more; make a new pair, or"
            " run chmod 600 on it if you are sure that nobody has read it"
        )
    return pair


def read_public(path: Path) -> tuple[str, ...]:
    """Return the public keys in a file: one, or two.

    Raises:
        KeyFileError: it cannot be read, others could have written it, or it has something else.
    """
    lines, found = _read(path)
    keys = _parse_public(path, lines)
    _check_writers(path, found)
    return keys


def is_key(text: str) -> bool:
    """Return whether a text is a key: 32 bytes as Z85 writes them."""
    try:
        return len(text) == 40 and z85.encode(z85.decode(text.encode("ascii"))).decode() == text
    except (KeyError, ValueError, struct.error):
        return False


def main(args: argparse.Namespace) -> int:
    """Run `trackd keys make` or `trackd keys show`, and return the exit code.

    Raises:
        KeyFileError: it cannot be done.
    """
    if args.action == "make":
        made = make_keys(args.host, args.out)
        if args.json:
            _print_json(
                host=args.host,
                public_key=made.public,
                secret_file=str(made.secret_file),
                public_file=str(made.public_file),
            )
        else:
            print(f"{made.secret_file}  secret: stays on {args.host}")  # noqa: T201
            print(f"{made.public_file}  public: for those who shall know {args.host}")  # noqa: T201
        return exits.OK
    # Whoever owns the file: nothing is believed of it here.
    lines, _ = _read(args.file)
    is_secret = lines[:1] != [] and lines[0].startswith(_SECRET)
    if is_secret:
        keys: tuple[str, ...] = (_parse_secret(args.file, lines).public,)
    else:
        keys = _parse_public(args.file, lines)
    if args.json:
        _print_json(kind="secret" if is_secret else "public", public_keys=list(keys))
    else:
        print("".join(map(format_public, keys)), end="")  # noqa: T201
    return exits.OK


def _print_json(**values: object) -> None:
    print(json.dumps(values))  # noqa: T201


def _new_pair() -> tuple[str, str]:
    if not zmq.has("curve"):
        raise KeyFileError(
            "libzmq was built without CURVE here; install the pyzmq of the Python index"
        )
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


def _write(path: Path, text: str, mode: int) -> None:
    """Create a file; what is at its path, a symbolic link too, stays and is an error."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise KeyFileError(
            f"{path} is there already, and its key may be in use; move it away, or choose another"
            " directory with --out"
        ) from None
    except OSError as error:
        raise KeyFileError(f"cannot make {path}: {exits.reason_of(error)}") from error
    try:
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - a descriptor
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)  # whatever the umask
            os.fsync(descriptor)
    except BaseException as error:
        path.unlink()
        if isinstance(error, OSError):
            raise KeyFileError(f"cannot write {path}: {exits.reason_of(error)}") from error
        raise


def _read(path: Path) -> tuple[list[str], os.stat_result]:
    """Return the lines of a key's file that are not empty, and whose file it is."""
    # O_NONBLOCK: a FIFO in its place must not hang us.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        reason = exits.reason_of(error)
        if error.errno == errno.ELOOP:
            reason = "it is a symbolic link, and trackd follows none here"
        raise KeyFileError(f"cannot read {path}: {reason}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise KeyFileError(f"{path} is not a regular file")
        content = os.read(descriptor, _MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError(f"cannot read {path}: {exits.reason_of(error)}") from error
    finally:
        os.close(descriptor)
    if len(content) > _MAX_BYTES or not content.isascii():
        raise KeyFileError(f"{path} is not a file of keys; see trackd keys --help")
    lines = [line.strip() for line in content.decode("ascii").splitlines()]
    return [line for line in lines if line], found


def _parse_secret(path: Path, lines: list[str]) -> KeyPair:
    word, _, secret = lines[0].partition(" ") if lines else ("", "", "")
    if word != _SECRET or len(lines) > 1 or not is_key(secret):
        hint = "it has a public key" if word == _PUBLIC else f"it has no line '{_SECRET} KEY'"
        raise KeyFileError(f"{path} is not a file of a secret key: {hint}; see trackd keys --help")
    return KeyPair(zmq.curve_public(secret.encode()).decode(), secret)


def _parse_public(path: Path, lines: list[str]) -> tuple[str, ...]:
    parts = [line.partition(" ") for line in lines]
    if any(word == _SECRET for word, _, _ in parts):
        raise KeyFileError(
            f"{path} has a secret key: it belongs to its owner alone; where a public key is wanted,"
            f" use the file of the same name that ends in {PUBLIC_SUFFIX}"
        )
    keys = tuple(key for word, _, key in parts if word == _PUBLIC and is_key(key))
    if len(keys) != len(lines) or not 1 <= len(keys) <= MAX_KEYS:
        raise KeyFileError(
            f"{path} is not a file of public keys: it has to have one line '{_PUBLIC} KEY', or"
            f" {MAX_KEYS}; see trackd keys --help"
        )
    return keys


def _check_writers(path: Path, found: os.stat_result) -> None:
    if found.st_uid not in {0, os.geteuid()}:
        owner = name_user(found.st_uid)
        raise KeyFileError(
            f"{path} belongs to {owner}, who could have written another key into it; give it to"
            " root or to the daemon's user"
        )
    if found.st_mode & 0o022:
        raise KeyFileError(f"{path} can be written to by others; run chmod go-w on it")
