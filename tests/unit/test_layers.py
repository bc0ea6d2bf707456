"""The layers of the source: no import points up, and none goes in a circle.

Every import counts: those within functions and those for type checkers alone, too.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"trackd": ROOT / "daemon" / "trackd", "trackd_client": ROOT / "client" / "trackd_client"}

#: From the lowest layer to the highest; a module belongs to the longest name that it begins with.
CLIENT = [
    [
        "trackd_client._version",
        "trackd_client.errors",
        "trackd_client.metrics",
        "trackd_client.policy",
        "trackd_client.proxy",
        "trackd_client.results",
    ],
    ["trackd_client.wire"],
    ["trackd_client.core"],
    ["trackd_client.sync", "trackd_client.aio"],
    ["trackd_client"],
    ["trackd_client.testing"],
    [
        "trackd_client.cli.exit_codes",
        "trackd_client.cli.streams",
        "trackd_client.cli.text",
        "trackd_client.cli.common",
        "trackd_client.cli.completions",
    ],
    ["trackd_client.cli.output"],
    [
        "trackd_client.cli.host_checks",
        "trackd_client.cli.dial_checks",
        "trackd_client.cli.supervisor",
        "trackd_client.cli.front",
        "trackd_client.cli.process_tree",
        "trackd_client.cli.quick_claim",
        "trackd_client.cli.claim_socket",
        "trackd_client.cli.run",
    ],
    ["trackd_client.cli.top"],
    ["trackd_client.cli.commands"],
    ["trackd_client.cli.app"],
    ["trackd_client.cli", "trackd_client.cli.man"],
]
DAEMON = [
    ["trackd"],
    ["trackd.streams"],
    ["trackd.rules"],
    ["trackd.config"],
    ["trackd.sessions"],
    ["trackd.state"],
    ["trackd.host"],
    ["trackd.storage"],
    ["trackd.fleet"],
    ["trackd.operations"],
    ["trackd.actors"],
    ["trackd.fleet.mailbox", "trackd.fleet.leader", "trackd.fleet.relay"],
    ["trackd.probe", "trackd.ping"],
    ["trackd.http"],
    ["trackd.server", "trackd.overseer", "trackd.guard", "trackd.signals"],
    ["trackd.fleet.lead"],
    ["trackd.demo"],
    ["trackd.cli"],
    ["trackd.__main__"],
]


def modules() -> dict[str, Path]:
    """Return the path of each module of both packages."""
    found = {}
    for name, place in SOURCES.items():
        for path in place.rglob("*.py"):
            parts = [name, *path.relative_to(place).with_suffix("").parts]
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(name: str) -> set[str]:
    """Return our modules that a module imports, wherever in it; packages for what they export."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: a relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return (found & MODULES.keys()) - {name}


GRAPH = {name: imports_of(name) for name in MODULES}


def layer_of(name: str, layers: list[list[str]]) -> int:
    """Return the number of a module's layer, the lowest first."""
    found = [
        (len(prefix), number)
        for number, prefixes in enumerate(layers)
        for prefix in prefixes
        if name == prefix or (name.startswith(f"{prefix}.") and "." in prefix)
    ]
    assert found, f"{name} is in no layer"
    return max(found)[1]


@pytest.mark.parametrize("name", sorted(MODULES))
def test_no_import_points_to_a_higher_layer(name: str) -> None:
    layers = DAEMON if name.split(".", maxsplit=1)[0] == "trackd" else CLIENT
    mine = layer_of(name, layers)
    for imported in GRAPH[name]:
        if layers is DAEMON and imported.split(".")[0] == "trackd_client":
            assert layer_of(imported, CLIENT) <= layer_of("trackd_client", CLIENT), imported
            continue
        assert layers is DAEMON or imported.split(".")[0] == "trackd_client", (
            f"the client imports the daemon: {name} imports {imported}"
        )
        assert layer_of(imported, layers) <= mine, f"{name} imports {imported}, which is above it"


def test_no_import_goes_in_a_circle() -> None:
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


@pytest.mark.parametrize("pure", ["trackd.rules", "trackd.sessions", "trackd.state"])
def test_what_is_pure_imports_neither_the_host_nor_the_database(pure: str) -> None:
    forbidden = {"sqlite3", "zmq", "pykka", "threading", "socket", "asyncio", "select", "logging"}
    for name in [name for name in MODULES if name == pure or name.startswith(f"{pure}.")]:
        tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
        outside = {
            imported.split(".")[0]
            for node in ast.walk(tree)
            for imported in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert not outside & forbidden, name
        assert not [each for each in GRAPH[name] if each.startswith("trackd.host")], name
        assert not [each for each in GRAPH[name] if each.startswith("trackd.storage")], name


def test_the_wire_loads_neither_client() -> None:
    code = "import sys, trackd_client.wire.protocol; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    names = loaded.stdout.split()
    assert "trackd_client.wire.protocol" in names
    assert not [
        name
        for name in names
        if name == "asyncio" or name.startswith(("trackd_client.sync", "trackd_client.aio"))
    ]
