"""Who may talk to the leader: real sockets over TCP, real keys in real files."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from helpers.support import PATIENCE, wait_until
from trackd.fleet.authentication import Authentication, HostKeys, host_of, secure
from trackd.fleet.keys import KeyFileError, KeyPair, MadeKeys, make_keys, read_secret

Dealer = zmq.Socket[bytes]


class Site:
    """A leader's ROUTER, a directory of hosts, and hosts that connect."""

    def __init__(self, tmp_path: Path, context: zmq.Context[Dealer]) -> None:
        self.context = context
        self.sockets: list[Dealer] = []
        self.made_in = tmp_path / "made"  # on the hosts
        self.directory = tmp_path / "hosts"
        self.made_in.mkdir()
        self.directory.mkdir()
        self.own = read_secret(make_keys("leader", self.made_in).secret_file)
        self.router = self.socket(zmq.ROUTER)
        secure(self.router, self.own)
        self.port = self.router.bind_to_random_port("tcp://127.0.0.1")

    def socket(self, kind: zmq.SocketType = zmq.DEALER) -> Dealer:
        made: Dealer = self.context.socket(kind)
        self.sockets.append(made)
        return made

    def make_host(self, name: str) -> KeyPair:
        """Make the keys of a host, and make it known."""
        made = make_keys(name, self.made_in)
        shutil.copy(made.public_file, self.directory)
        return read_secret(made.secret_file)

    def make_stranger(self, name: str = "stranger") -> KeyPair:
        return read_secret(make_keys(name, self.made_in).secret_file)

    def connect(self, own: KeyPair | None) -> Dealer:
        dealer = self.socket()
        if own is not None:
            dealer.curve_serverkey = self.own.public.encode()
            dealer.curve_publickey = own.public.encode()
            dealer.curve_secretkey = own.secret.encode()
        dealer.connect(f"tcp://127.0.0.1:{self.port}")
        return dealer

    def receive(self, hosts: HostKeys) -> tuple[str | None, bytes]:
        """Return which host the next frame is from, and the frame."""
        assert self.router.poll(int(PATIENCE * 1000)), "no frame has come"
        _, frame = self.router.recv_multipart(copy=False)
        return host_of(frame, hosts), frame.bytes


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path, zmq.Context())
    yield made
    for each in made.sockets:
        each.close(linger=0)
    made.context.term()


def speak(dealer: Dealer, frame: bytes) -> None:
    """Send a frame; to where it was refused already nothing can be sent, and `send` would wait."""
    with contextlib.suppress(zmq.Again):
        dealer.send(frame, zmq.DONTWAIT)


def append(path: Path, made: MadeKeys) -> None:
    with path.open("a") as file:
        file.write(made.public_file.read_text())


# --- connections ---------------------------------------------------------------------------------


def test_each_frame_has_the_host_whose_key_its_connection_has_proved(site: Site) -> None:
    a, b = site.make_host("a"), site.make_host("b.example.com")
    hosts = HostKeys(site.directory)
    with Authentication(site.context, hosts):
        from_a, from_b = site.connect(a), site.connect(b)
        from_a.send(b"1")
        assert site.receive(hosts) == ("a", b"1")
        from_b.send(b"2")
        assert site.receive(hosts) == ("b.example.com", b"2")


def test_who_has_no_known_key_never_gets_a_frame_in(site: Site) -> None:
    known = site.make_host("known")
    hosts = HostKeys(site.directory)
    wrong_secret = KeyPair(known.public, site.make_stranger("other").secret)
    with Authentication(site.context, hosts) as authentication:
        plain = site.connect(None)
        password = site.socket()
        password.plain_username, password.plain_password = b"known", known.public.encode()
        password.connect(f"tcp://127.0.0.1:{site.port}")
        claimed = site.socket()
        claimed.routing_id = known.public.encode()
        claimed.connect(f"tcp://127.0.0.1:{site.port}")
        strangers = [plain, password, claimed, site.connect(wrong_secret)]
        strangers += [site.connect(site.make_stranger(f"stranger-{i}")) for i in range(5)]
        for each in strangers:
            speak(each, b"in")
        wait_until(lambda: authentication.refused >= 5)
        good = site.connect(known)
        for i in range(20):
            good.send(b"%d" % i)
            assert site.receive(hosts) == ("known", b"%d" % i)
        assert not site.router.poll(0)


def test_without_a_handler_nobody_gets_in(site: Site) -> None:
    known = site.make_host("known")
    hosts = HostKeys(site.directory)
    dealer = site.connect(known)
    failed = dealer.get_monitor_socket(zmq.Event.HANDSHAKE_FAILED_NO_DETAIL)
    dealer.send(b"early")
    for _ in range(2):  # libzmq itself would let everybody in who knows the key of the server
        assert failed.poll(int(PATIENCE * 1000))
        failed.recv_multipart()
    assert not site.router.poll(0)
    with Authentication(site.context, hosts):
        assert site.receive(hosts) == ("known", b"early")
    dealer.disable_monitor()
    failed.close(linger=0)


def test_a_removed_key_is_worth_nothing_on_a_live_connection_at_once(site: Site) -> None:
    a, b = site.make_host("a"), site.make_host("b")
    hosts = HostKeys(site.directory)
    with Authentication(site.context, hosts) as authentication:
        from_a, from_b = site.connect(a), site.connect(b)
        from_a.send(b"1")
        assert site.receive(hosts) == ("a", b"1")
        (site.directory / "a.pub").unlink()
        from_a.send(b"before the reload")
        assert site.receive(hosts) == ("a", b"before the reload")
        hosts.reload()
        from_a.send(b"after it")
        assert site.receive(hosts) == (None, b"after it")
        from_b.send(b"2")
        assert site.receive(hosts) == ("b", b"2")
        # And a new connection of it is refused.
        speak(site.connect(a), b"again")
        wait_until(lambda: authentication.refused)
        assert not site.router.poll(0)


def test_a_replaced_key_is_worth_nothing_though_its_host_may_talk(site: Site) -> None:
    old = site.make_host("a")
    hosts = HostKeys(site.directory)
    with Authentication(site.context, hosts):
        with_old = site.connect(old)
        with_old.send(b"1")
        assert site.receive(hosts) == ("a", b"1")
        (site.made_in / "new").mkdir()
        made = make_keys("a", site.made_in / "new")
        append(site.directory / "a.pub", made)
        hosts.reload()
        with_new = site.connect(read_secret(made.secret_file))
        for dealer in (with_old, with_new):  # either is good
            dealer.send(b"2")
            assert site.receive(hosts) == ("a", b"2")
        shutil.copy(made.public_file, site.directory)
        hosts.reload()
        with_old.send(b"3")
        assert site.receive(hosts) == (None, b"3")
        with_new.send(b"3")
        assert site.receive(hosts) == ("a", b"3")


def test_a_host_that_becomes_known_gets_in(site: Site) -> None:
    hosts = HostKeys(site.directory)
    with Authentication(site.context, hosts) as authentication:
        new = site.make_host("new")
        speak(site.connect(new), b"too early")
        wait_until(lambda: authentication.refused)
        hosts.reload()
        site.connect(new).send(b"now")
        assert site.receive(hosts) == ("new", b"now")


def test_a_frame_that_has_not_come_over_curve_is_of_no_host(site: Site) -> None:
    site.router.bind("inproc://own")
    wake = site.socket()
    wake.connect("inproc://own")
    wake.send(b"")
    assert site.receive(HostKeys(site.directory)) == (None, b"")


# --- the thread ----------------------------------------------------------------------------------


class Failing(HostKeys):
    """Fails once."""

    failures = 1

    def host_of(self, key: str) -> str | None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("planned")
        return super().host_of(key)


def test_an_error_in_the_thread_is_logged_and_the_thread_goes_on(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    known = site.make_host("known")
    hosts = Failing(site.directory)
    with caplog.at_level(logging.WARNING, "trackd"), Authentication(site.context, hosts):
        first = site.connect(known)
        first.send(b"1")
        wait_until(lambda: "planned" in caplog.text)
        assert "cannot answer who may connect" in caplog.text
        site.connect(known).send(b"2")
        assert site.receive(hosts) == ("known", b"2")


def test_a_refusal_is_logged_with_key_and_address_but_not_each(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    strangers = [site.make_stranger(f"stranger-{i}") for i in range(4)]
    with (
        caplog.at_level(logging.WARNING, "trackd"),
        Authentication(site.context, HostKeys(site.directory)) as authentication,
    ):
        for number, each in enumerate(strangers, 1):
            speak(site.connect(each), b"in")
            wait_until(lambda number=number: authentication.refused >= number)  # type: ignore[misc]
    assert caplog.messages == [
        f"refused a connection from 127.0.0.1: no host has its key {strangers[0].public}"
    ]


def test_rubbish_to_the_handler_changes_nothing(site: Site) -> None:
    known = site.make_host("known")
    hosts = HostKeys(site.directory)
    with Authentication(site.context, hosts) as authentication:
        asker = site.socket()
        asker.connect("inproc://zeromq.zap.01")
        key = bytes(32)
        good = [b"", b"1.0", b"7", b"trackd", b"1.2.3.4", b"", b"CURVE", key]
        asker.send(b"x")
        asker.send_multipart([b"", b"1.0", b"1"])
        for at, value in ((1, b"2.0"), (3, b"other"), (6, b"PLAIN"), (7, b"short")):
            asker.send_multipart([*good[:at], value, *good[at + 1 :]])
        asker.send_multipart([*good, b"more"])
        asker.send_multipart(good[:-1])
        for count in range(1, 7):
            assert asker.poll(int(PATIENCE * 1000))
            answer = asker.recv_multipart()
            assert answer == [b"", b"1.0", b"7", b"400", b"no host has this key", b"", b""]
            wait_until(lambda count=count: authentication.refused >= count)  # type: ignore[misc]
        site.connect(known).send(b"1")
        assert site.receive(hosts) == ("known", b"1")


def test_a_context_has_one_handler_and_another_one_after_its_end(site: Site) -> None:
    hosts = HostKeys(site.directory)
    with Authentication(site.context, hosts) as first, pytest.raises(zmq.ZMQError, match="in use"):
        Authentication(site.context, hosts)
    first.close()  # twice does no harm
    Authentication(site.context, hosts).close()


def test_it_ends_with_its_context(site: Site) -> None:
    authentication = Authentication(site.context, HostKeys(site.directory))
    site.router.close(linger=0)
    site.context.term()
    authentication.close()


# --- the directory -------------------------------------------------------------------------------


def test_what_is_wrong_in_one_file_concerns_its_host_alone(site: Site) -> None:
    good, bad = site.make_host("good"), site.make_host("bad")
    (site.directory / "bad.pub").chmod(0o666)
    (site.directory / "-x.pub").write_text("")
    (site.directory / "link.pub").symlink_to("good.pub")
    (site.directory / ".good.pub.swp").write_text("")
    (site.directory / "README").write_text("")
    hosts = HostKeys(site.directory)
    assert hosts.hosts == {"good"}
    assert (hosts.host_of(good.public), hosts.host_of(bad.public)) == ("good", None)
    assert hosts.problems[0].startswith("'-x' cannot be a host's name")
    assert [problem.split("/")[-1] for problem in hosts.problems[1:]] == [
        "bad.pub can be written to by others; run chmod go-w on it",
        "link.pub: it is a symbolic link, and trackd follows none here",
    ]
    (site.directory / "bad.pub").chmod(0o644)
    hosts.reload()
    assert hosts.hosts == {"good", "bad"}


def test_a_key_of_two_hosts_is_of_none(site: Site) -> None:
    a = site.make_host("a")
    site.make_host("c")
    shutil.copy(site.directory / "a.pub", site.directory / "b.pub")
    hosts = HostKeys(site.directory)
    assert hosts.host_of(a.public) is None
    assert hosts.hosts == {"c"}
    assert hosts.problems == ("a and b have the same key, so it is worth nothing",)


def test_a_directory_that_cannot_be_read_or_trusted_changes_nothing(site: Site) -> None:
    a = site.make_host("a")
    hosts = HostKeys(site.directory)
    site.make_host("b")
    site.directory.chmod(0o777)
    with pytest.raises(KeyFileError, match="can be written to by every user"):
        hosts.reload()
    away = site.directory.rename(site.directory.with_name("away"))
    with pytest.raises(KeyFileError, match="no such file or directory"):
        hosts.reload()
    assert (hosts.host_of(a.public), hosts.hosts) == ("a", frozenset("a"))
    away.rename(site.directory)
    site.directory.chmod(0o755)
    hosts.reload()
    assert hosts.hosts == {"a", "b"}


def test_no_descriptor_is_left(site: Site) -> None:
    hosts = HostKeys(site.directory)
    Authentication(site.context, hosts).close()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(20):
        Authentication(site.context, hosts).close()
    # libzmq closes the last ones a moment later.
    wait_until(lambda: len(os.listdir("/proc/self/fd")) < before + 20)  # noqa: PTH208
