"""What `trackctl status` says beyond the verdict."""

from __future__ import annotations

from trackd_client.cli.commands import status
from trackd_client.results import Tunnels


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
