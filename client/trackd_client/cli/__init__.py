"""`trackctl`: what operators see and do. It uses the client library, and nothing of the daemon."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


def main() -> int:
    """Run `trackctl`; the entry point of the distribution."""
    try:
        trackctl = commands()
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


def commands() -> click.Group:
    """Return `trackctl` with all of its subcommands.

    Raises:
        ModuleNotFoundError: click or rich is not installed.
    """
    from trackd_client.cli import (
        command,
        completion,
        connection_count,
        doctor,
        dump,
        end_session,
        explain,
        forget,
        gossip,
        hold,
        leases,
        log,
        metrics,
        proxies,
        release,
        reload,
        sessions,
        status,
        top,
        watch,
    )

    for each in (
        status.status,
        proxies.proxies,
        leases.leases,
        sessions.sessions,
        explain.explain,
        top.top,
        watch.watch,
        log.log,
        metrics.metrics,
        hold.hold,
        gossip.gossip,
        release.release,
        end_session.end_session,
        forget.forget,
        connection_count.set_connection_count,
        reload.reload,
        doctor.doctor,
        dump.dump,
        completion.completion,
    ):
        command.trackctl.add_command(each)
    return command.trackctl
