"""A newcomer finds the tests of a module by its path: `tests/unit` mirrors the source."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"daemon": ROOT / "daemon" / "trackd", "client": ROOT / "client" / "trackd_client"}
#: Folders whose modules decide something without a process of their own.
FOLDERS = {
    "daemon": [
        "rules",
        "sessions",
        "state",
        "storage",
        "operations",
        "actors",
        "config",
        "host",
        "fleet",
    ],
    "client": ["wire", "core"],
}
#: Lines up to which a module is tested with those that use it.
SMALL = 60
#: Modules whose tests stand elsewhere, and why.
ELSEWHERE = {
    "daemon/fleet/fenced.py": "needs etcd: fleet/test_store.py",
    "daemon/fleet/store.py": "needs etcd: fleet/test_store.py",
    "daemon/fleet/lead.py": "needs etcd: fleet/test_fleet.py",
    "daemon/fleet/inspector.py": "needs etcd: fleet/test_operators.py",
    "daemon/fleet/presence.py": "needs etcd: fleet/test_presence.py",
    "daemon/fleet/leader.py": "needs etcd: fleet/test_fleet.py",
    "daemon/fleet/mailbox.py": "needs etcd: fleet/test_fleet.py",
    "daemon/fleet/relay.py": "needs etcd: fleet/test_fleet.py",
    "daemon/rules/checks.py": "the tracker's arguments: rules/test_tracker.py",
    "daemon/operations/context.py": "attributes: operations/test_reports.py",
    "daemon/operations/replies.py": "replies to parked requests: operations/test_agents.py",
    "daemon/storage/checkpoint.py": "the steps of a store: storage/test_sqlite.py",
    "daemon/storage/database.py": "transactions and seals: storage/test_sqlite.py",
    "client/core/arguments.py": "every call checks its arguments: integration/test_trackers.py",
    "daemon/actors/messages.py": "classes without behaviour",
    "daemon/operations/runtime.py": "attributes: operations/test_reports.py",
    "daemon/actors/unread.py": "needs the kernel: faults/test_memory_bounds.py",
    "daemon/actors/supervised.py": "tested with an actor: actors/test_ticker.py",
    "daemon/actors/publisher.py": "needs subscribers: integration/test_events.py",
    "daemon/actors/watcher.py": "needs the kernel: faults/test_watcher.py",
    "daemon/config/kinds.py": "kinds of settings: config/test_settings.py",
    "daemon/storage/files.py": "needs a daemon whose files go: faults/test_removed_files.py",
    "daemon/fleet/election.py": "needs etcd: fleet/test_election.py",
    "daemon/fleet/etcd.py": "needs etcd: fleet/test_etcd.py",
    "daemon/fleet/etcd_messages.py": "needs etcd: fleet/test_etcd.py",
    "daemon/host/lock.py": "needs other processes: integration/test_locks.py",
    "daemon/host/places.py": "needs other processes: integration/test_locks.py",
    "client/core/base_tracker.py": "shared by both clients: integration/test_trackers.py",
    "client/core/lease.py": "shared by both clients: integration/test_trackers.py",
    "client/core/mirror.py": "fed by a stream: core/test_stream.py",
}


def modules(side: str) -> list[str]:
    """Return the modules of the folders, as `ELSEWHERE` names them, that are not small."""
    return [
        f"{side}/{path.relative_to(SOURCES[side])}"
        for folder in FOLDERS[side]
        for path in sorted((SOURCES[side] / folder).rglob("*.py"))
        if len(path.read_text(encoding="utf-8").splitlines()) > SMALL
    ]


def place_of_tests(module: str) -> Path:
    """Return where the tests of a module belong."""
    path = ROOT / "tests" / "unit" / module
    return path.with_name(f"test_{path.name}")


MODULES = [*modules("daemon"), *modules("client")]


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_its_tests_at_its_own_path_or_a_reason(module: str) -> None:
    assert place_of_tests(module).exists() != (module in ELSEWHERE), "one of both, and not both"


def test_every_reason_is_for_a_module_that_is_there() -> None:
    assert set(ELSEWHERE) <= set(MODULES)


def test_every_place_that_a_reason_names_is_there() -> None:
    for module, reason in ELSEWHERE.items():
        for name in [word.strip(",") for word in reason.split() if word.strip(",").endswith(".py")]:
            places = [*(ROOT / "tests").rglob(name)]
            assert places, f"{module}: {name}"


def test_no_unit_test_mirrors_a_module_that_is_not_there() -> None:
    several = {
        "daemon/rules/test_traces.py",
        "daemon/rules/test_tracker_costs.py",
        "daemon/rules/test_tracker_offers.py",
        "daemon/state/test_follow.py",
        "daemon/state/test_offers.py",
        "daemon/operations/test_error_order.py",
        "daemon/operations/test_request_fields.py",
    }
    for side, source in SOURCES.items():
        tests = ROOT / "tests" / "unit" / side
        for path in tests.rglob("test_*.py"):
            place = path.relative_to(tests)
            if f"{side}/{place}" in several | {"client/test_package.py"}:
                continue
            module = source / place.with_name(place.name.removeprefix("test_"))
            assert module.exists(), f"{path}: there is no {module}"
