"""What `trackctl doctor` can see without the daemon: its socket, this user, its units."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from trackd_client.cli.text import escape
from trackd_client.core.sockets import diagnose
from trackd_client.wire.places import RUN, SOCKET_NAME, PlaceError, unescape

OK: Final = "ok"
NOTE: Final = "note"
PROBLEM: Final = "problem"
#: Seconds that systemctl may take.
_ASKED_SECONDS: Final = 5.0
#: The directory that is tried when no cluster is named.
DEFAULT: Final = "default"
#: Restarts by systemd, and seconds since the last one, that show a unit crashing again and again.
_MANY_RESTARTS: Final = 5
_FRESH_SECONDS: Final = 600.0


class Finding(NamedTuple):
    """What a check has found.

    Attributes:
        check: its name.
        level: `ok`, `note` (nothing is wrong, but worth knowing) or `problem`.
        said: what was found.
        do: what to do about it, or empty.
    """

    check: str
    level: str
    said: str
    do: str = ""


def check_host(endpoint: str, path: Path, *, given: bool) -> Iterator[Finding]:
    """Look at all of it.

    Args:
        endpoint: where the daemon should be.
        path: of its socket.
        given: whether the endpoint was given on the command line.
    """
    yield from _check_socket(endpoint, path, given=given)
    yield from _check_group(path)
    yield from _check_unit(path)


def _check_socket(endpoint: str, path: Path, *, given: bool) -> Iterator[Finding]:
    """Look at the socket: where it is, whether this user may open it, whether anyone listens."""
    how = (
        "--endpoint"
        if given
        else "$TRACKD_ENDPOINT"
        if os.environ.get("TRACKD_ENDPOINT")
        else "the usual places"
    )
    yield Finding("endpoint", OK, f"{endpoint}, from {how}")
    try:
        found = path.stat()
    except PermissionError:
        owner = _find_closed(path.parent)
        yield Finding(
            "socket", PROBLEM, f"{owner} may not be entered by this user", _advise_access(owner)
        )
        return
    except FileNotFoundError:
        yield Finding("socket", PROBLEM, f"there is no {path}", _advise_start(path))
        return
    except OSError as error:
        yield Finding("socket", PROBLEM, f"{path}: {error.strerror}", "choose another --endpoint")
        return
    if not stat.S_ISSOCK(found.st_mode):
        yield Finding(
            "socket", PROBLEM, f"{path} is not a socket", "remove it, and start the daemon"
        )
        return
    yield Finding("socket", OK, _describe_socket(path, found))
    if not os.access(path, os.R_OK | os.W_OK, effective_ids=True):
        yield Finding(
            "permissions", PROBLEM, "this user may not open the socket", _advise_mode(path, found)
        )
        return
    yield Finding("permissions", OK, "this user may open the socket")
    why = diagnose(endpoint)
    if why is not None:
        yield Finding("listener", PROBLEM, why, _advise_start(path))


def _check_group(path: Path) -> Iterator[Finding]:
    """Tell whether this user is in the socket's group, now and by the database."""
    try:
        found = path.stat()
    except OSError:
        return
    group = _find_group_name(found.st_gid)
    mine = {os.getegid(), *os.getgroups()}
    user = _find_user_name(os.geteuid())
    if os.geteuid() in {0, found.st_uid}:
        yield Finding("group", OK, f"{user} needs no group: root, or the socket's owner")
    elif found.st_gid in mine:
        yield Finding("group", OK, f"{user} is in the socket's group {group}")
    elif found.st_gid in _list_groups(user):
        yield Finding(
            "group",
            PROBLEM,
            f"{user} was put into the group {group}, but this login is older than that",
            f"log in again, or run: newgrp {group}",
        )
    elif not found.st_mode & stat.S_IWGRP and not found.st_mode & stat.S_IWOTH:
        yield Finding("group", NOTE, f"the socket's mode lets no group in, nor {user}")
    elif found.st_mode & stat.S_IWOTH:
        yield Finding("group", NOTE, f"{user} is not in {group}; everybody may open the socket")
    else:
        yield Finding(
            "group",
            PROBLEM,
            f"{user} is not in the socket's group {group}",
            f"sudo usermod --append --groups {group} {user}, and log in again",
        )


def _check_unit(path: Path) -> Iterator[Finding]:
    """Ask systemd about the units of a socket that lies where the units put it."""
    if path.name != SOCKET_NAME or path.parent.parent != RUN:
        yield Finding(
            "unit", NOTE, "the socket is not one of trackd@.socket; units were not checked"
        )
        return
    systemctl = shutil.which("systemctl")
    if systemctl is None or not Path("/run/systemd/system").is_dir():
        yield Finding("unit", NOTE, "systemd does not run here; units were not checked")
        return
    instance = path.parent.name
    for kind in ("socket", "service"):
        unit = f"trackd@{instance}.{kind}"
        yield check_unit(systemctl, unit)


def check_unit(systemctl: str, unit: str) -> Finding:
    """Return how a unit is, as systemctl shows it."""
    wanted = (
        *("LoadState", "ActiveState", "SubState", "Result", "NRestarts", "StatusText"),
        "ActiveEnterTimestampMonotonic",
    )
    try:
        done = subprocess.run(  # noqa: S603 - its own path, and a unit's name
            [systemctl, "show", f"--property={','.join(wanted)}", "--", unit],
            capture_output=True,
            text=True,
            check=False,
            timeout=_ASKED_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("unit", NOTE, f"systemctl failed: {error}")
    properties = dict(line.split("=", 1) for line in done.stdout.split("\n") if "=" in line)
    active = properties.get("ActiveState", "")
    if properties.get("LoadState") == "not-found":
        return Finding("unit", NOTE, f"{unit} is not installed; started by hand?")
    said = f"{unit}: {active} ({properties.get('SubState', '')})"
    if properties.get("NRestarts", "0") not in {"", "0"}:
        said += f", restarted {properties['NRestarts']} times"
    if properties.get("StatusText"):
        said += f": {escape(properties['StatusText'])}"
    if active == "failed":
        return Finding(
            "unit",
            PROBLEM,
            f"{said}, because of {properties.get('Result', '')}",
            f"journalctl -u {unit}, then: sudo systemctl restart {unit}",
        )
    restarts = properties.get("NRestarts", "0")
    begun = properties.get("ActiveEnterTimestampMonotonic", "0")
    fresh = begun.isdecimal() and time.monotonic() - int(begun) / 1e6 < _FRESH_SECONDS
    many = restarts.isdecimal() and int(restarts) >= _MANY_RESTARTS
    loops = properties.get("SubState") == "auto-restart" or (many and fresh)
    if loops:
        return Finding(
            "unit", PROBLEM, f"{said}: it ends again and again", f"journalctl -u {unit} says why"
        )
    if active != "active" and unit.endswith(".socket"):
        return Finding("unit", PROBLEM, said, f"sudo systemctl enable --now {unit}")
    return Finding("unit", OK, said)


def _describe_socket(path: Path, found: os.stat_result) -> str:
    owner = f"{_find_user_name(found.st_uid)}:{_find_group_name(found.st_gid)}"
    return f"{path}, {owner}, mode {stat.S_IMODE(found.st_mode):04o}"


def _find_closed(directory: Path) -> Path:
    """Return the first directory on the way to one that this user may not look into."""
    for place in [*reversed(directory.parents), directory]:
        if not os.access(place, os.X_OK, effective_ids=True):
            return place
    return directory


def _advise_mode(path: Path, found: os.stat_result) -> str:
    """Return what lets this user in: a group helps only where the mode lets the group in."""
    if found.st_mode & stat.S_IWGRP:
        return _advise_access(path)
    owner = _find_user_name(found.st_uid)
    return (
        f"only {owner} may open it (mode {stat.S_IMODE(found.st_mode):04o}): run trackctl as"
        f" {owner} or root; or let its group in: SocketMode=0660 in trackd@.socket, or"
        " socket_mode 0660, and restart the daemon"
    )


def _advise_access(place: Path) -> str:
    try:
        group = _find_group_name(place.stat().st_gid)
    except OSError:
        group = "its group"
    user = _find_user_name(os.geteuid())
    return f"sudo usermod --append --groups {group} {user}, and log in again; or ask as root"


def _advise_start(path: Path) -> str:
    if path == RUN / DEFAULT / SOCKET_NAME:  # no cluster was named
        if others := _list_clusters():
            return (
                f"name the cluster: trackctl --cluster {others[0]} (there are: {', '.join(others)})"
            )
        return "name the cluster with --cluster; is its unit trackd@CLUSTER.socket enabled?"
    if path.parent.parent == RUN and path.name == SOCKET_NAME:
        return (
            f"sudo systemctl enable --now 'trackd@{path.parent.name}.socket'; or another --cluster"
        )
    return f"trackd run --cluster-name NAME --endpoint ipc://{path}; or another --endpoint"


def _list_clusters() -> list[str]:
    """Return the clusters that have a socket in the usual place."""
    try:
        return sorted(
            escape(unescape(place.name))
            for place in RUN.iterdir()
            if (place / SOCKET_NAME).is_socket()
        )
    except (OSError, PlaceError):
        return []


def _find_user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _find_group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _list_groups(user: str) -> list[int]:
    try:
        return os.getgrouplist(user, pwd.getpwnam(user).pw_gid)
    except KeyError:
        return []
