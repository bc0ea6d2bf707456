"""What operators see of a real fleet, and do to it: by the protocol, the client and `trackctl`."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from fleet.cluster import Cluster
from fleet.fleet import LONG, Fleet
from helpers.protocol_document import Message, messages
from helpers.protocol_peer import VARIES, Peer, body_of
from helpers.support import wait_until
from helpers.trackctl import trackctl
from trackd.config import exits
from trackd.fleet.etcd import Etcd, EtcdError, NoSpace
from trackd_client import Proxy, Tracker, __version__
from trackd_client.errors import PermissionRefused, StoreUnavailable
from trackd_client.results import EtcdHealth
from trackd_client.wire.protocol import REPLY

#: What differs from fleet to fleet.
DIFFERS = VARIES | {
    *("commits", "commit_mean", "commit_p50", "commit_p99", "heard", "term"),
    *("version", "since", "looked", "member", "leads", "size", "in_use", "revisions", "compacted"),
}
#: Seconds; nobody starts a candidate again whose term ends because the machine is slow.
TTL = 10


@pytest.fixture
def fleet(cluster: Cluster, etcd: Etcd) -> Iterator[Fleet]:
    """Two candidates, and the relays of two hosts, of which the first has admins."""
    with Fleet(cluster, ttl=TTL) as made:
        for relay in made.relays:
            made.wait_until_served(relay)
        yield made


def settled(told: Any, shown: Any) -> Any:
    """Return what was told, with the documented values in the place of those that differ."""
    if isinstance(told, dict) and isinstance(shown, dict):
        return {
            field: shown.get(field)
            if field in DIFFERS and type(value) is type(shown.get(field))
            else settled(value, shown.get(field))
            for field, value in told.items()
        }
    if isinstance(told, list) and isinstance(shown, list) and len(told) == len(shown):
        return [settled(*pair) for pair in zip(told, shown, strict=True)]
    return told


def check(message: Message, frame: bytes) -> None:
    """Compare a reply with the documented one."""
    told = settled(body_of(frame), message.body)
    assert list(told.items()) == list(message.body.items()), message.name


def test_a_fleet_answers_as_documented(cluster: Cluster, etcd: Etcd) -> None:
    said = [message for message in messages() if message.section == "In a fleet"]
    with Fleet(cluster, candidates=1, ttl=TTL) as fleet:
        for relay in fleet.relays:
            fleet.wait_until_served(relay)
        with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:
            wait_until(lambda: tracker.fleet().candidates, LONG)
            wait_until(lambda: _is_known(tracker.fleet().etcd), LONG)
        with Peer(fleet.relays[0].endpoint) as peer:
            for message in said:
                if message.kind == REPLY:
                    check(message, peer.reply(message.body["seq"]))
                else:
                    peer.send(message)
            assert peer.nothing_is_left()


def _is_known(etcd: EtcdHealth | None) -> bool:
    return etcd is not None and etcd.revisions is not None


def test_a_leader_that_yields_hands_over_and_ends(fleet: Fleet) -> None:
    leader = fleet.leader()
    (other,) = [each for each in fleet.candidates if each is not leader]
    with Tracker(fleet.relays[0].endpoint, timeout=LONG) as tracker:
        tracker.track_expected(Proxy("p1"))
        lease = tracker.try_acquire()
        assert lease is not None
        before = tracker.fleet()
        assert before.leader == leader.name
        told = trackctl("--endpoint", fleet.relays[0].endpoint, "--timeout", "60", "fleet", "yield")
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout == f"{leader.name} leads no more; trackctl fleet shows who is next\n"
        wait_until(lambda: leader.has_ended, LONG)
        assert leader.end() == exits.DEPOSED
        wait_until(lambda: _leader_of(tracker) == other.name, LONG)
        after = tracker.fleet()
        assert after.term > before.term
        assert after.failovers == before.failovers + 1
        assert lease.claim("p1")
        assert not tracker.yield_lead(before.term)["yielded"]
        assert _leader_of(tracker) == other.name


def _leader_of(tracker: Tracker) -> str | None:
    """Return who leads, as far as the relay knows."""
    try:
        return tracker.fleet().leader
    except StoreUnavailable as error:
        assert "no leader for" in str(error)  # noqa: PT017 - it may also succeed
        return None


def test_a_host_is_dropped_by_admins_of_the_fleet(fleet: Fleet) -> None:
    ours, theirs = (relay.endpoint for relay in fleet.relays)
    with Tracker(ours, timeout=LONG) as a, Tracker(theirs, timeout=LONG) as b:
        a.track_expected(Proxy("p1"))
        lease = b.try_acquire()
        assert lease is not None
        assert lease.claim("p1")
        with pytest.raises(PermissionRefused, match="admins of host-2 have it only if admin_hosts"):
            b.drop_host("host-1")
        told = trackctl("--endpoint", ours, "--timeout", "60", "fleet", "drop", "host-2")
        assert (told.returncode, told.stderr) == (0, "")
        assert told.stdout == "1 session of host-2 ended; 1 lease released\n"
        assert a.acquire() is not None
        assert lease.lost.wait(LONG)
        ended = [each for each in a.log()["events"] if each.kind == "session_ended"]
        assert (ended[0].fields["reason"], ended[0].fields["by_host"]) == ("host_lost", "host-1")
    for act in (("fleet", "yield"), ("forget", "p1")):
        refused = trackctl("--endpoint", theirs, "--timeout", "60", *act)
        assert refused.returncode == 1
        assert refused.stderr.endswith(
            " needs the role admin; admins of host-2 have it only if admin_hosts in the settings of"
            " the candidates names that host\n"
        )
    none = trackctl("--endpoint", ours, "--timeout", "60", "fleet", "drop", "host-9")
    assert none.returncode == 1
    assert (
        none.stderr == "trackctl: the fleet has no host host-9; trackctl fleet hosts lists them\n"
    )


def test_people_see_who_leads_and_which_hosts_are_silent(fleet: Fleet) -> None:
    ours = fleet.relays[0].endpoint
    fleet.admit("host-3")

    def ask(*arguments: str) -> str:
        told = trackctl("--endpoint", ours, "--timeout", "60", "fleet", *arguments)
        assert (told.returncode, told.stderr) == (0, "")
        return told.stdout

    leader = fleet.leader()
    leader.signal(signal.SIGHUP)  # it reads the keys again
    wait_until(lambda: leader.says("reloaded"), LONG)
    assert ask().startswith(f"{leader.name} leads, term ")
    _, said = doctor(ours)
    assert said["relay"][1] == "this is the relay of host-1, a host of a fleet"
    assert said["leader"][0] == "ok"
    assert said["leader"][1].startswith(f"{leader.name}, term ")
    assert said["hosts"] == ("problem", "silent: host-3")
    assert said["etcd"][0] == "ok"
    (other,) = [each for each in fleet.candidates if each is not leader]
    both = sorted([f"{leader.name} (V) leads", f"{other.name} (V) stands by"])
    shown = ", ".join(both).replace("V", __version__)
    wait_until(lambda: f"candidates  {shown}\n" in ask(), LONG)
    wait_until(lambda: "etcd members" in doctor(ours)[1], LONG)  # the leader has looked
    _, said = doctor(ours)
    assert said["candidates"] == ("note", f"{shown}; only one stands by")
    assert said["etcd members"][0] == "ok"
    assert "3 of 3 members answer" in said["etcd members"][1]
    assert f"etcd        {said['etcd members'][1][:20]}" in ask()
    assert not said.keys() & {"clock", "descriptors", "store", "http"}, "those of another host"
    assert "hosts       2 of 3 connected\nsilent      host-3\n" in ask()
    head, *rows = ask("hosts").splitlines()
    assert head.split() == ["host", "state", "heard", "sessions", "admins", "key"]
    assert [row.split()[:2] for row in rows] == [
        ["host-1", "connected"],
        ["host-2", "connected"],
        ["host-3", "silent"],
    ]
    fleet.relays[1].kill()
    wait_until(lambda: "silent      host-2, host-3\n" in ask(), LONG)
    other.kill()
    alone = f"none stands by: when {leader.name} ends, nobody leads"
    wait_until(lambda: doctor(ours)[1]["candidates"] == ("problem", alone), LONG)
    found = {row["host"]: row for row in json.loads(ask("hosts", "--json"))["hosts"]}
    assert not found["host-2"]["connected"]
    with Tracker(ours, timeout=LONG) as tracker:
        assert tracker.status().leader == leader.name
    leader.kill()
    wait_until(lambda: fleet.relays[0].says("no leader"), LONG)
    told = trackctl("--endpoint", ours, "fleet")
    assert told.returncode == 1
    assert told.stderr.startswith("trackctl: no leader for ")
    code, said = doctor(ours)
    assert code == 1
    assert said["leader"][0] == "problem"
    assert said["leader"][1].startswith("none for ")


def test_people_see_what_is_wrong_with_etcd() -> None:
    with (
        Cluster("--quota-backend-bytes=16777216") as small,
        small.client(timeout=60.0) as etcd,
        Fleet(small, candidates=1, hosts=1, ttl=TTL) as fleet,
    ):
        ours = fleet.relays[0].endpoint
        fleet.wait_until_served(fleet.relays[0])
        with Tracker(ours, timeout=LONG) as tracker:

            def health() -> EtcdHealth:
                found = tracker.fleet().etcd
                assert found is not None
                return found

            wait_until(lambda: _is_known(tracker.fleet().etcd), LONG)
            assert [row.member for row in health().members] == small.endpoints
            assert [row.quota for row in health().members] == [16777216] * 3
            assert sum(row.leads for row in health().members) == 1
            before = health().revisions
            assert before is not None

            def is_grown() -> bool | None:
                now = health().revisions
                return None if now is None else now >= before + 100

            for count in range(100):
                etcd.put(b"other", b"%d" % count)
            wait_until(lambda: is_grown() is True, LONG)
            etcd.compact(etcd.range(b"other").revision)
            wait_until(lambda: is_grown() is False, LONG)
            assert health().compacted < LONG
            for count in range(45):
                etcd.put(b"other/%d" % count, bytes(300_000))
            wait_until(lambda: "etcd size" in doctor(ours)[1], LONG)
            small.followers()[0].stop()
            wait_until(lambda: "etcd members" in doctor(ours)[1], LONG)
            silent = [each.endpoint for each in small.members if each.pid is None]
            wait_until(lambda: not all(row.answers for row in health().members), LONG)
            code, said = doctor(ours)
            assert code == 1
            assert said["etcd members"] == ("problem", f"silent: {silent[0]}")
            assert said["etcd size"][0] == "problem"
            assert "etcd alarms" not in said
            counts = itertools.count(45)

            def is_full() -> bool:
                """Put more; a call that the stopped member does not answer says nothing."""
                with contextlib.suppress(EtcdError):
                    try:
                        etcd.put(b"other/%d" % next(counts), bytes(300_000))
                    except NoSpace:
                        return True
                return False

            wait_until(is_full, LONG)
            wait_until(lambda: health().alarms, LONG)
            level, alarms = doctor(ours)[1]["etcd alarms"]
            assert level == "problem"
            assert alarms.startswith("NOSPACE at 127.0.0.1:")
            told = trackctl("--endpoint", ours, "--timeout", "60", "fleet")
            assert f"alarms      {alarms}\n" in told.stdout
            families = {name: samples for name, *_, samples in tracker.metrics()["families"]}
            assert families["trackd_fleet_etcd_quota_bytes"] == [[[], 16777216]]
            ((_, size),) = families["trackd_fleet_etcd_bytes"]
            assert size > 0.8 * 16777216
            assert [["silent", ""], 1] in families["trackd_fleet_etcd_members"]
            assert [["NOSPACE"], 0] not in families["trackd_fleet_etcd_alarms"]


def doctor(endpoint: str) -> tuple[int, dict[str, tuple[str, str]]]:
    """Return the exit code of the doctor, and what it found: level and sentence, by check."""
    told = trackctl("--endpoint", endpoint, "--timeout", "60", "doctor", "--json")
    findings = json.loads(told.stdout)["findings"]
    return told.returncode, {each["check"]: (each["level"], each["said"]) for each in findings}
