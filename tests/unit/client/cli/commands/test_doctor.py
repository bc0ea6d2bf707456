"""What `trackctl doctor` finds wrong with the etcd of a fleet."""

from __future__ import annotations

from typing import Any

import pytest

from trackd_client.cli.commands import doctor
from trackd_client.results import EtcdHealth

MB = 1_000_000
HOUR = 3600.0


def member(name: str, version: str = "3.5.16", **more: Any) -> dict[str, Any]:
    """Return a member that answers, and has room."""
    fields = {"answers": True, "leads": False, "size": MB, "in_use": MB, "quota": 100 * MB}
    return {"member": name, "version": version, **fields, **more}


def found(*members: dict[str, Any], **more: Any) -> list[tuple[str, str, str]]:
    """Return the name, the level and the sentence of each finding."""
    rows = list(members) or [member("a"), member("b"), member("c")]
    fields = {"looked": 1.0, "members": rows, "alarms": [], "revisions": 10, "compacted": 60.0}
    health = EtcdHealth({**fields, **more})
    return [(each.check, each.level, each.said) for each in doctor._check_members(health)]


def test_three_members_that_are_well_are_one_line() -> None:
    ((check, level, said),) = found()
    assert (check, level) == ("etcd members", "ok")
    assert "3.5.16, 3 of 3 members answer" in said


@pytest.mark.parametrize("version", ["3.5.15", "3.5.9", "3.4.30", "2.10.20"])
def test_a_member_is_too_old_that_ends_leases_which_live(version: str) -> None:
    assert found(member("a"), member("b", version)) == [
        ("etcd version", "problem", f"{version} may end leases that live")
    ]


@pytest.mark.parametrize("version", ["3.5.16", "3.5.21", "3.6.0", "3.10.1", "4.0.0-rc.1"])
def test_newer_members_are_new_enough(version: str) -> None:
    assert [check for check, _, _ in found(member("a", version))] == ["etcd members"]


def test_a_member_that_does_not_answer_is_silent_whatever_its_version_is() -> None:
    assert found(member("a"), member("b", "", answers=False)) == [
        ("etcd members", "problem", "silent: b")
    ]


def test_etcd_that_is_not_compacted_for_hours_while_it_changes_is_told() -> None:
    many, long = 10_000, 3 * HOUR
    (finding, _) = found(revisions=many, compacted=long)
    assert finding == ("etcd compaction", "problem", "none for 3h 0m, 10000 changes since")
    for fields in (
        {"revisions": many - 1, "compacted": long},
        {"revisions": many, "compacted": long - 1.0},
        {"revisions": None, "compacted": 100 * HOUR},
    ):
        assert [check for check, _, _ in found(**fields)] == ["etcd members"]


def test_a_database_is_nearly_full_from_four_fifths_of_its_quota_on() -> None:
    assert [check for check, _, _ in found(member("a", size=80 * MB - 1))] == ["etcd members"]
    (finding, _) = found(member("a"), member("b", size=80 * MB))
    assert finding[:2] == ("etcd size", "problem")
    assert "80.0 MB of 100.0 MB at b" in finding[2]


def test_alarms_are_told_with_their_members() -> None:
    alarms = [{"member": "a", "kind": "NOSPACE"}, {"member": "c", "kind": "CORRUPT"}]
    assert found(alarms=alarms) == [
        ("etcd alarms", "problem", "NOSPACE at a, CORRUPT at c"),
    ]
