"""`trackctl` put together: the group of `common` with each command of `commands/`."""

from __future__ import annotations

import click

from trackd_client.cli import common
from trackd_client.cli.commands import (
    claim,
    completion,
    connection_count,
    doctor,
    dump,
    end_session,
    explain,
    fleet,
    forget,
    gossip,
    hold,
    keep,
    leases,
    log,
    metrics,
    proxies,
    release,
    reload,
    resume,
    sessions,
    status,
    top,
    wait,
    watch,
)


def build() -> click.Group:
    """Return `trackctl` with all of its commands."""
    for each in (
        status.status,
        proxies.proxies,
        leases.leases,
        sessions.sessions,
        explain.explain,
        top.top,
        wait.wait,
        fleet.fleet,
        watch.watch,
        log.log,
        metrics.metrics,
        hold.hold,
        keep.keep,
        claim.claim,
        gossip.gossip,
        release.release,
        end_session.end_session,
        forget.forget,
        connection_count.set_connection_count,
        resume.resume,
        reload.reload,
        doctor.doctor,
        dump.dump,
        completion.completion,
    ):
        common.trackctl.add_command(each)
    return common.trackctl
