"""What `trackctl status` says beyond the verdict."""

from __future__ import annotations

from trackd_client.cli.commands import status


def test_the_status_says_what_came_of_the_last_reload() -> None:
    base = {"wall": 0.0, "changed": [], "refused": [], "error": None}
    assert "nothing changed" in status.describe_reload(base)
    assert "changed proxy_expiry" in status.describe_reload(base | {"changed": ["proxy_expiry"]})
    restart = status.describe_reload(base | {"refused": [["endpoint", "it is bound"]]})
    assert "needs a restart: endpoint" in restart
    assert "refused, nothing changed: what" in status.describe_reload(base | {"error": "what"})
