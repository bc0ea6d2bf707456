"""What `trackctl status` says beyond the verdict."""

from __future__ import annotations

from trackd_client.cli.commands import status


def test_the_status_says_what_came_of_the_last_reload() -> None:
    base = {"wall": 0.0, "changed": [], "refused": [], "error": None}
    assert "nothing changed" in status.reloaded(base)
    assert "changed proxy_expiry" in status.reloaded(base | {"changed": ["proxy_expiry"]})
    restart = status.reloaded(base | {"refused": [["endpoint", "it is bound"]]})
    assert "needs a restart: endpoint" in restart
    assert "refused, nothing changed: what" in status.reloaded(base | {"error": "what"})
