"""What all tests share: real daemons, and proof that nothing is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from helpers.long_form import IS_LONG

# A busy machine is no defect. All else is as it was, CI's own profile included.
settings.register_profile(
    "patient", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("patient")

# A shell ignores them for what it runs in the background, and every child would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup

pytest_plugins = ["trackd_client.testing", "helpers.stored"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store",
        choices=("sqlite", "etcd"),
        default="sqlite",
        help="where daemons keep their state: etcd runs in a fleet what is marked `both_stores`",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--store") == "etcd":
        config.pluginmanager.import_plugin("fleet.daemons")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--store") != "etcd":
        return
    left = [each for each in items if not is_for_fleets(each)]
    config.hook.pytest_deselected(items=left)
    items[:] = [each for each in items if is_for_fleets(each)]


def is_for_fleets(item: pytest.Item) -> bool:
    """Return whether a test runs with `--store etcd`: in the short form, with one client alone."""
    if Path(__file__).parent / "fleet" in item.path.parents:
        return True
    marker = item.get_closest_marker("both_stores")
    if marker is None or IS_LONG:
        return marker is not None
    callspec = getattr(item, "callspec", None)
    has_one_client = callspec is None or callspec.params.get("maker") in {None, "sync"}
    return has_one_client and not marker.kwargs.get("long")


def children() -> set[int]:
    """Return the pids of the processes that descend from this one and still run."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(errors="replace")
            except OSError:
                continue
            parents[int(entry.name)] = int(stat[stat.rfind(")") + 2 :].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {os.getpid()}


@pytest.fixture(autouse=True)
def nothing_is_left_behind() -> Iterator[None]:
    """Fail a test that leaves a process of its own."""
    before = children()
    yield
    left = children() - before
    assert not left, f"processes left behind: {left}"
