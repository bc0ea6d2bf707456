"""What `trackctl status` says beyond the verdict."""

from __future__ import annotations

from trackd_client.cli.commands import status
from trackd_client.cli.output.render import Cell
from trackd_client.results import Status, Tunnels


def test_the_status_says_what_came_of_the_last_reload() -> None:
    base = {"wall": 0.0, "changed": [], "refused": [], "error": None}
    assert "nothing changed" in status.describe_reload(base)
    assert "changed proxy_expiry" in status.describe_reload(base | {"changed": ["proxy_expiry"]})
    restart = status.describe_reload(base | {"refused": [["endpoint", "it is bound"]]})
    assert "needs a restart: endpoint" in restart
    assert "refused, nothing changed: what" in status.describe_reload(base | {"error": "what"})


def test_the_status_says_what_leases_have_reported_of_their_tunnels() -> None:
    nothing = {"reporting": 1, "stale": 0, "reported": None, "rtt": None}
    told = {"reporting": 12, "stale": 2, "reported": 5.0, "rtt": 0.0125}
    for fields, reported, sentence in (
        (nothing, None, "1 reports signs of life"),
        (
            told,
            -3.2,
            "12 report signs of life, the last one 3s ago, round trip 12.5 ms, 2 stale",
        ),
    ):
        assert status.describe_tunnels(Tunnels(fields), reported) == sentence


GROUPS = [
    {"group": "", "generation": 1, "tracked": 3, "desired": 3, "claimed": 3},
    {"group": "east", "generation": 7, "tracked": 4, "desired": 2, "claimed": 0},
]
GAPS = [
    {"group": "east", "missing": 2, "missing_seconds": 71.5},
    {"group": None, "missing": 1, "missing_seconds": 5.0},
]


def test_groups_that_miss_tunnels_come_first_with_their_seconds_and_all_others_last() -> None:
    def list_plain(**gaps: object) -> list[list[str]]:
        rows = status.list_groups(Status({"groups": GROUPS, **gaps}))
        return [[cell.text if isinstance(cell, Cell) else cell for cell in row] for row in rows]

    east, unnamed = ["east", "7", "4", "2", "0"], ['""', "1", "3", "3", "3"]
    assert list_plain(missing_by_group=GAPS) == [
        [*east, "1m 11s"],
        [*unnamed, "-"],
        ["all others", "", "", "", "", "5s"],
    ], "what is not listed is among the others"
    assert list_plain(missing_by_group=GAPS[:1]) == [[*east, "1m 11s"], [*unnamed, "0s"]]
    assert list_plain() == [[*east, "-"], [*unnamed, "-"]], "an older daemon"
