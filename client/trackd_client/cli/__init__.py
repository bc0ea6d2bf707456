"""Private: `trackctl`, what operators see and do.

It uses the client library, and nothing of the daemon.
"""

from __future__ import annotations

import sys

from trackd_client.cli import quick_claim, streams


def main() -> int:
    """Run `trackctl`; the entry point of the distribution."""
    streams.guard()
    if sys.argv[1:2] == ["claim"] and (code := quick_claim.main(sys.argv[2:])) is not None:
        sys.exit(code)
    try:
        from trackd_client.cli import app

        trackctl = app.build()
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write(
            "trackctl needs click and rich; run in a checkout of trackd: pip install '.[cli]'\n"
        )
        return 2
    streams.run(lambda: trackctl(prog_name="trackctl"))
    return 0
