"""Private: `trackctl`, what operators see and do.

It uses the client library, and nothing of the daemon.
"""

from __future__ import annotations

import io
import sys


def main() -> int:
    """Run `trackctl`; the entry point of the distribution."""
    try:
        from trackd_client.cli import app

        trackctl = app.build()
    except ModuleNotFoundError as error:
        if error.name not in {"click", "rich"}:
            raise
        sys.stderr.write("trackctl needs click and rich; pip install 'trackd[cli]'\n")
        return 2
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names may hold what a locale cannot write
            stream.reconfigure(errors="backslashreplace")
    trackctl(prog_name="trackctl")
    return 0
