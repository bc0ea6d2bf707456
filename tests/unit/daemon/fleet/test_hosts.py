"""The hosts of a fleet: who is connected, by which connection, and who is silent for too long."""

from __future__ import annotations

from trackd.fleet.hosts import Hosts


def test_a_host_that_is_heard_of_is_not_silent() -> None:
    hosts = Hosts(10.0)
    assert hosts.next_silent() is None
    assert hosts.here("a", b"1", "boot", 0.0)
    assert not hosts.here("a", b"1", "boot", 5.0)
    assert hosts.next_silent() == 15.0
    host = hosts.heard("a", b"1", 8.0)
    assert host is not None
    assert (host.boot, host.heard) == ("boot", 8.0)
    assert hosts.silent(18.0) == []
    assert hosts.silent(18.1) == ["a"]


def test_the_one_that_is_silent_for_longest_comes_first() -> None:
    hosts = Hosts(10.0)
    for number, name in enumerate("abc"):
        hosts.here(name, name.encode(), "", float(number))
    hosts.heard("a", b"a", 3.0)
    assert hosts.silent(12.5) == ["b", "c"]
    assert hosts.silent(11.5) == ["b"]
    assert hosts.next_silent() == 11.0


def test_only_the_newest_connection_counts() -> None:
    hosts = Hosts(10.0)
    hosts.here("a", b"1", "boot", 0.0)
    assert hosts.here("a", b"2", "boot", 1.0)
    assert hosts.heard("a", b"1", 2.0) is None
    assert not hosts.has(b"1")
    assert hosts.has(b"2")
    assert hosts.silent(11.0) == []


def test_a_new_boot_is_new_on_the_same_connection() -> None:
    hosts = Hosts(10.0)
    hosts.here("a", b"1", "boot", 0.0)
    assert hosts.here("a", b"1", "another", 1.0)
    found = hosts.get("a")
    assert found is not None
    assert found.boot == "another"
    assert hosts.has(b"1")


def test_no_host_speaks_over_the_connection_of_another() -> None:
    hosts = Hosts(10.0)
    hosts.here("a", b"1", "boot", 0.0)
    assert hosts.heard("b", b"1", 1.0) is None
    assert hosts.next_silent() == 10.0


def test_a_new_leader_waits_for_the_hosts_that_have_sessions() -> None:
    hosts = Hosts(10.0)
    hosts.expect(["a", "b"], 5.0)
    assert not hosts.has(b"")
    assert hosts.here("b", b"1", "boot", 6.0)
    assert hosts.silent(15.1) == ["a"]
    hosts.drop("a")
    assert [host.name for host in hosts] == ["b"]
    assert hosts.silent(16.1) == ["b"]


def test_a_host_that_is_cut_off_is_silent_from_what_was_heard_last() -> None:
    hosts = Hosts(10.0)
    hosts.here("a", b"1", "boot", 5.0)
    hosts.cut_off("a")
    assert not hosts.has(b"1")
    assert hosts.heard("a", b"1", 9.0) is None
    assert hosts.silent(15.1) == ["a"]
    hosts.drop("a")
    hosts.drop("a")
    hosts.cut_off("a")
    assert len(hosts) == 0
