"""Client and daemon look for the socket in the same places, and say what is wrong with a place."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from trackd_client.wire import places
from trackd_client.wire.places import PlaceError

if TYPE_CHECKING:
    from collections.abc import Iterator

NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)

ESCAPED = [
    ("example.com", "example.com"),
    ("Hallöchen, Meister", r"Hall\xc3\xb6chen\x2c\x20Meister"),
    ("a/b-c", r"a-b\x2dc"),
    (".hidden", r"\x2ehidden"),
    ("..", r"\x2e."),
    ("/", "-"),
    ("a@b:c_d", r"a\x40b:c_d"),
    ("back\\slash", r"back\x5cslash"),
    ("\x7f\n", r"\x7f\x0a"),
    ("", ""),
]


class Host:
    """A `/run/trackd` and an $XDG_RUNTIME_DIR of its own, with sockets where a test wants them."""

    def __init__(self, root: Path) -> None:
        self.run = root / "run"
        self.xdg = root / "xdg"
        self.environ = {"XDG_RUNTIME_DIR": str(self.xdg)}
        self.cluster = self.run / r"a\x2db" / "trackd.sock"
        self.system = self.run / "default" / "trackd.sock"
        self.own = self.xdg / "trackd" / "default" / "trackd.sock"

    def listen(self, *paths: Path) -> None:
        for path in paths:
            path.parent.mkdir(parents=True)
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(path))


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    # pytest's own directories have long names, and a socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="trackd-") as root:
        made = Host(Path(root))
        monkeypatch.setattr(places, "RUN", made.run)
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        yield made


# --- escaping ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "escaped"), ESCAPED)
def test_a_name_is_escaped_as_the_manual_of_systemd_says(name: str, escaped: str) -> None:
    assert places.escape(name) == escaped
    assert places.unescape(escaped) == name


@given(NAMES)
def test_every_name_comes_back_and_is_one_plain_file_name_in_between(name: str) -> None:
    escaped = places.escape(name)
    assert places.unescape(escaped) == name
    assert re.fullmatch(r"[A-Za-z0-9:_.\\-]+", escaped)
    assert not escaped.startswith(".")


@given(st.binary(min_size=1).filter(lambda raw: 0 not in raw))
def test_bytes_that_are_not_text_come_back_too(raw: bytes) -> None:
    name = raw.decode("utf-8", "surrogateescape")
    assert places.unescape(places.escape(name)) == name


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="systemd-escape is not installed")
@settings(max_examples=30, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=30))
def test_names_are_escaped_as_systemd_escape_does(names: list[str]) -> None:
    command = ["systemd-escape", "--", *names]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    assert [places.escape(name) for name in names] == done.stdout.split()


@pytest.mark.parametrize("wrong", ["a\\", r"a\y2d", r"a\x2", r"a\xzz", r"a\x00"])
def test_what_systemd_never_writes_is_not_unescaped(wrong: str) -> None:
    with pytest.raises(PlaceError, match="not what systemd-escape writes"):
        places.unescape(wrong)


@pytest.mark.parametrize("wrong", ["a\0b", "\ud800"])
def test_a_name_that_no_file_can_have_is_refused(wrong: str) -> None:
    with pytest.raises(PlaceError, match=r"NUL|surrogate"):
        places.escape(wrong)


# --- endpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ("ipc:///run/x.sock", "/run/x.sock"),
        ("/run/x.sock", "/run/x.sock"),
        ("ipc://here/x.sock", "here/x.sock"),
        ("x.sock", "x.sock"),
        ("ipc:///" + "x" * 106, "/" + "x" * 106),
    ],
)
def test_an_ipc_endpoint_and_a_bare_path_name_a_socket(endpoint: str, path: str) -> None:
    assert places.check_ipc_path(endpoint) == Path(path)


@pytest.mark.parametrize(
    ("endpoint", "sentence"),
    [
        ("tcp://127.0.0.1:1", "is not an ipc endpoint: trackd serves a unix socket alone"),
        ("inproc://x", "is not an ipc endpoint"),
        ("", "does not name a socket"),
        ("ipc://", "does not name a socket"),
        ("ipc:///run/", "does not name a socket"),
        ("ipc:///a\0b", "does not name a socket"),
        ("ipc://@name", "is an abstract socket, which has no permissions"),
        ("ipc://*", "lets chance choose the path"),
        ("ipc:///" + "x" * 107, "the path has 108 bytes, a unix socket takes at most 107"),
        ("ipc:///" + "ö" * 54, "the path has 109 bytes"),
        ("ipc:///\udcff", "is not UTF-8"),
    ],
)
def test_what_cannot_be_an_endpoint_is_refused_with_the_reason(
    endpoint: str, sentence: str
) -> None:
    with pytest.raises(PlaceError, match=re.escape(sentence)):
        places.check_ipc_path(endpoint)


def test_the_longest_path_is_the_longest_that_zeromq_takes() -> None:
    assert zmq.IPC_PATH_MAX_LEN == places.MAX_PATH_BYTES


# --- the client --------------------------------------------------------------------------------


def test_the_endpoint_given_wins_over_the_environment() -> None:
    environ = {"TRACKD_ENDPOINT": "ipc:///from/environment"}
    assert places.client_endpoint("/given", "a-b", environ) == "ipc:///given"
    assert places.client_endpoint("ipc:///given", None, environ) == "ipc:///given"


def test_the_environment_wins_over_the_cluster(host: Host) -> None:
    host.listen(host.cluster)
    environ = host.environ | {"TRACKD_ENDPOINT": "/from/environment"}
    assert places.client_endpoint(None, "a-b", environ) == "ipc:///from/environment"


def test_an_empty_variable_counts_as_not_set(host: Host) -> None:
    host.listen(host.system)
    environ = {"TRACKD_ENDPOINT": "", "XDG_RUNTIME_DIR": ""}
    assert places.client_endpoint(None, None, environ) == f"ipc://{host.system}"


def test_the_sockets_are_looked_for_in_order(host: Host) -> None:
    wanted = [host.cluster, host.system, host.own]
    host.listen(*wanted)
    for socket_path in wanted:
        assert places.client_endpoint(None, "a-b", host.environ) == f"ipc://{socket_path}"
        socket_path.unlink()


def test_without_a_cluster_no_cluster_s_directory_is_looked_into(host: Host) -> None:
    host.listen(host.cluster, host.own)
    assert places.client_endpoint(None, None, host.environ) == f"ipc://{host.own}"


def test_a_file_that_is_no_socket_is_passed_over(host: Host) -> None:
    host.listen(host.own)
    host.system.parent.mkdir(parents=True)
    host.system.touch()
    assert places.client_endpoint(None, None, host.environ) == f"ipc://{host.own}"


def test_when_no_socket_exists_the_user_s_own_place_is_named(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert places.client_endpoint(None, None, host.environ) == f"ipc://{host.own}"
    assert places.client_endpoint(None, None, {}) == f"ipc://{host.system}"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert places.client_endpoint(None, None, host.environ) == f"ipc://{host.system}"


def test_when_no_socket_exists_a_cluster_s_place_is_named(host: Host) -> None:
    assert places.client_endpoint(None, "a-b", host.environ) == f"ipc://{host.cluster}"


def test_the_client_of_a_service_ignores_the_service_s_own_runtime_directory(host: Host) -> None:
    environ = host.environ | {"RUNTIME_DIRECTORY": "/run/agent"}
    assert places.client_endpoint(None, None, environ) == f"ipc://{host.own}"


@pytest.mark.parametrize(
    ("endpoint", "cluster", "environ", "sentence"),
    [
        ("tcp://x", None, {}, "'tcp://x' is not an ipc endpoint"),
        ("", None, {}, "does not name a socket"),
        (None, None, {"TRACKD_ENDPOINT": "tcp://x"}, "$TRACKD_ENDPOINT: 'tcp://x' is not an ipc"),
        (None, "", {}, "the cluster's name is empty"),
        (None, "-" * 40, {}, "is too long"),
    ],
)
def test_a_client_s_wrong_place_is_refused_with_its_source(
    nothing_runs: None,
    endpoint: str | None,
    cluster: str | None,
    environ: dict[str, str],
    sentence: str,
) -> None:
    with pytest.raises(PlaceError, match=re.escape(sentence)):
        places.client_endpoint(endpoint, cluster, environ)


# --- the daemon --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "uid", "directory"),
    [
        ({"RUNTIME_DIRECTORY": "/run/trackd/x"}, 0, "/run/trackd/x"),
        ({"RUNTIME_DIRECTORY": "/run/trackd/x", "XDG_RUNTIME_DIR": "/u"}, 7, "/run/trackd/x"),
        ({"RUNTIME_DIRECTORY": "/run/trackd/x:/run/other"}, 7, "/run/trackd/x"),
        ({"XDG_RUNTIME_DIR": "/u"}, 0, "/run/trackd/default"),
        ({"XDG_RUNTIME_DIR": "/u"}, 7, "/u/trackd/default"),
        ({"XDG_RUNTIME_DIR": "/u", "RUNTIME_DIRECTORY": ""}, 7, "/u/trackd/default"),
    ],
)
def test_the_daemon_serves_where_its_user_may(
    environ: dict[str, str], uid: int, directory: str
) -> None:
    assert places.daemon_endpoint(environ, uid) == f"ipc://{directory}/trackd.sock"


@pytest.mark.parametrize("environ", [{}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "u/7"}])
def test_a_user_without_a_runtime_directory_is_told_to_name_an_endpoint(
    environ: dict[str, str],
) -> None:
    with pytest.raises(PlaceError, match=r"XDG_RUNTIME_DIR is not set .*; pass --endpoint"):
        places.daemon_endpoint(environ, 7)


@pytest.mark.parametrize("uid", [0, 1000])
def test_a_client_of_the_same_user_finds_the_daemon_s_socket(
    host: Host, monkeypatch: pytest.MonkeyPatch, uid: int
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    endpoint = places.daemon_endpoint(host.environ)
    assert places.client_endpoint(None, None, host.environ) == endpoint
    host.listen(places.check_ipc_path(endpoint))
    assert places.client_endpoint(None, None, host.environ) == endpoint
    assert places.client_endpoint(None, "a-b", host.environ) == endpoint


def test_a_client_finds_the_unit_of_its_cluster(host: Host) -> None:
    unit = {"RUNTIME_DIRECTORY": str(host.run / places.escape("a-b"))}
    endpoint = places.daemon_endpoint(unit, 999)
    host.listen(places.check_ipc_path(endpoint), host.system)
    assert places.client_endpoint(None, "a-b", host.environ) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "directory"),
    [
        ("ipc:///run/trackd/default/trackd.sock", "/run/trackd/default"),
        ("trackd.sock", "."),
        ("ipc:///tmp/a.sock", "/tmp/a.sock.state"),
        ("ipc:///tmp/b.sock", "/tmp/b.sock.state"),
    ],
)
def test_the_state_is_kept_beside_the_socket_and_never_shared_by_two(
    endpoint: str, directory: str
) -> None:
    assert places.daemon_state_dir(endpoint) == Path(directory)


def test_the_module_imports_nothing_but_the_standard_library() -> None:
    # The file alone: the package around it is another matter.
    code = (
        "import importlib.util as u, sys; s = u.spec_from_file_location('p', sys.argv[1]); "
        "m = u.module_from_spec(s); s.loader.exec_module(m); "
        "print([n for n in sys.modules if n.split('.')[0] not in sys.stdlib_module_names])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, places.__file__],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "['__main__']"


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """No daemon of this machine has a socket in the default places."""
    monkeypatch.setattr(places, "_is_socket", lambda _path: False)


@pytest.mark.parametrize(
    ("name", "length"), [("x" * 84, 84), ("-" * 40, 160), ("é" * 11, 88), ("a." * 42, 84)]
)
def test_a_cluster_s_name_that_is_too_long_is_refused_with_the_length_that_fits(
    nothing_runs: None, name: str, length: int
) -> None:
    said = f"as systemd escapes it, it has {length} bytes, and 83 are allowed"
    with pytest.raises(PlaceError, match=said):
        places.client_endpoint(None, name, {})
    with pytest.raises(PlaceError, match=said):
        places.daemon_endpoint({"RUNTIME_DIRECTORY": f"/run/trackd/{places.escape(name)}"})


def test_the_longest_name_of_a_cluster_is_taken(nothing_runs: None) -> None:
    for name in ("x" * 83, "-" * 20 + "xxx"):
        endpoint = f"ipc:///run/trackd/{places.escape(name)}/trackd.sock"
        assert places.client_endpoint(None, name, {}) == endpoint
        assert len(endpoint) == len("ipc://") + places.MAX_PATH_BYTES
