"""`trackctl`: what operators see and do. It uses the client library, and nothing of the daemon."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `trackctl`; the entry point of the distribution."""
    try:
        from trackd_client.cli import command, status
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write("trackctl needs click and rich; pip install 'trackd[cli]'\n")
        return 2
    command.trackctl.add_command(status.status)
    command.trackctl()
    return 0
