"""`trackctl doctor`: looks for what is wrong between this user and the daemon, and says what to do.

Each check is a function that yields findings. They look; they change nothing.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click

from trackd_client import Tracker, __version__
from trackd_client.cli import common, host_checks
from trackd_client.cli.commands.fleet import (
    describe_alarms,
    describe_candidate,
    describe_etcd,
    fullest,
)
from trackd_client.cli.dial_checks import Address, AddressType, check_dial
from trackd_client.cli.exit_codes import FAILED
from trackd_client.cli.host_checks import NOTE, OK, PROBLEM, Finding
from trackd_client.cli.output.render import (
    Page,
    format_count,
    format_duration,
    format_names,
    format_rtt,
    format_size,
    format_time,
)
from trackd_client.cli.output.verdict import is_covered, judge, seconds_since_dial
from trackd_client.cli.text import escape
from trackd_client.core.sockets import diagnose
from trackd_client.errors import TrackdError
from trackd_client.results import EtcdHealth, Fleet
from trackd_client.wire.clock import boottime
from trackd_client.wire.places import check_ipc_path, client_endpoint

_STYLES: Final = {OK: "green", NOTE: "dim", PROBLEM: "red"}
_EPILOG = """\b
Examples:
  trackctl doctor
  sudo trackctl doctor            # sees more of the daemon's process
  trackctl --cluster example.com doctor --json | jq '.findings[].do'
  trackctl doctor --dial balancer.example.com:443   # the way to the proxies

\b
Exit codes:
  0  all is well
  1  there is a problem
  2  wrong usage

\b
JSON: {"well", "findings": [{"check", "level": "ok", "note" or "problem",
"said", "do": what to do, or ""}]}
"""
#: Shares of a limit from which it is worth saying.
_FULL: Final = 0.8
#: etcd below this revokes leases that live.
_ETCD_FROM: Final = (3, 5, 16)
#: Without a compaction for so long, and with so many changes since, etcd is not compacted: with the
#: retention of our documents two hours may pass.
_COMPACTION_SECONDS: Final = 3 * 3600.0
_MANY_REVISIONS: Final = 10_000
#: Seconds by which clocks may differ: the answer was under way that long at the most.
_CLOCK_SECONDS: Final = 2.0


@click.command(epilog=_EPILOG)
@click.option(
    "--dial",
    type=AddressType(),
    metavar="HOST:PORT",
    help="Dial the balancer, too: name, TCP, TLS, and how many proxies answer.",
)
@click.option(
    "--dials",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    metavar="N",
    help="How often, one after the other. Nothing is claimed.",
)
@common.json_option("Print JSON.")
@click.pass_obj
def doctor(options: common.Options, *, dial: Address | None, dials: int, as_json: bool) -> None:
    """Say what is wrong between this user and the daemon.

    Socket, permissions, groups, versions, units, clocks, limits, store, configuration; with
    --dial the way to the proxies, too.
    """
    findings = check_everything(options)
    if dial is not None:
        findings += check_dial(dial, dials, _count_tracked(options))
    well = all(finding.level != PROBLEM for finding in findings)
    if as_json:
        rows = [finding._asdict() for finding in findings]
        common.print_json({"well": well, "findings": rows})
    else:
        show(findings, Page())
    if not well:
        raise SystemExit(FAILED)


def show(findings: list[Finding], page: Page) -> None:
    """Print findings for people."""
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        level = page.paint(f"{finding.level:<7}", _STYLES[finding.level])
        begin = f"{'':7}  {'':<{width}}  "
        said = f"\n{begin}".join(page.folded(finding.said, used=len(begin)))
        page.line(f"{level}  {finding.check:<{width}}  {said}")
        if finding.do:  # never folded, for it is often a command to be copied
            page.line(begin + page.paint(f"→ {finding.do}", "bold"))
    problems = sum(finding.level == PROBLEM for finding in findings)
    page.line(page.paint(format_count(problems, "problem"), "red") if problems else "all is well")


def check_everything(options: common.Options) -> list[Finding]:
    """Make every check that can be made, and return what was found."""
    try:
        endpoint = client_endpoint(options.endpoint, options.cluster)
        path = check_ipc_path(endpoint)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    findings = [*host_checks.check_host(endpoint, path, given=options.endpoint is not None)]
    if diagnose(endpoint) is not None:
        return findings
    try:
        with Tracker(
            endpoint, cluster=options.cluster, timeout=options.timeout, name="trackctl doctor"
        ) as tracker:
            findings += _check_daemon(tracker)
    except TrackdError as error:
        findings.append(
            Finding("daemon", PROBLEM, escape(error), "look at its log: journalctl -u 'trackd@*'")
        )
    return findings


def _count_tracked(options: common.Options) -> int | None:
    """Return how many proxies the daemon knows; None: it does not answer, which is said already."""
    try:
        with options.make_tracker(Tracker, must_listen=True, name="trackctl doctor") as tracker:
            return tracker.status().tracked
    except TrackdError:
        return None


# -- what the daemon replies ------------------------------------------------------------------


def _check_daemon(tracker: Tracker) -> Iterator[Finding]:
    hello = _ask_hello(tracker)
    if (relay := hello.get("fleet")) is not None:
        yield from _check_relay(tracker, relay)
        return
    began = boottime()
    tracker.ping()
    took = boottime() - began
    status = tracker.status()
    settings = {each["name"]: each for each in tracker.config()["settings"]}
    said = f"answers in {took * 1000:.1f} ms: cluster {escape(status['cluster'])}"
    yield Finding(
        "daemon", OK, f"{said}, pid {status['pid']}, up {format_duration(status['uptime'])}"
    )
    yield from _check_versions(status)
    yield from _check_clock(tracker, status, hello["clock"])
    yield from _check_store(status, settings)
    yield from _check_aside(settings)
    yield from _check_tunnels(tracker, status)
    yield from _check_configuration(status)
    yield from _check_http(status)
    yield from _check_counts(status, settings)
    yield from _check_process(status["pid"])


def _ask_hello(tracker: Tracker) -> dict[str, Any]:
    found: dict[str, Any] = tracker._request("hello", {}, in_session=False)  # noqa: SLF001 - the package's own
    return found


# -- what a fleet replies ---------------------------------------------------------------------


def _check_relay(tracker: Tracker, relay: dict[str, Any]) -> Iterator[Finding]:
    """Check a host of a fleet: its relay, the leader, and the other hosts.

    Files, processes and HTTP of the leader are those of another host.
    """
    host, since = escape(relay["host"]), format_duration(relay["seconds"])
    yield Finding("relay", OK, f"this is the relay of {host}, a host of a fleet")
    if relay["leader"] is None:
        yield Finding(
            "leader",
            PROBLEM,
            f"none for {since}, as far as this host can tell: nobody gets a lease; tunnels stay",
            "on the control hosts look at etcd, and at: systemctl status 'trackd-lead@*'",
        )
        return
    began = boottime()
    status, found = tracker.status(), tracker.fleet()
    took = (boottime() - began) / 2
    yield Finding(
        "leader",
        OK,
        f"{escape(found.leader)}, term {found.term}, for {format_duration(found.uptime)},"
        f" answers in {took * 1000:.1f} ms: cluster {escape(status.cluster)}",
    )
    settings = {each["name"]: each for each in tracker.config()["settings"]}
    yield from _check_versions(status)
    yield from _check_hosts(found)
    yield from _check_candidates(found)
    yield from _check_etcd(status, found)
    if found.etcd is not None:
        yield from _check_members(found.etcd)
    yield from _check_tunnels(tracker, status)
    yield from _check_counts(status, settings)


def _check_hosts(found: Fleet) -> Iterator[Finding]:
    silent = [row.host for row in found.hosts if row.key and not row.connected]
    keyless = [row.host for row in found.hosts if not row.key]
    if silent:
        yield Finding(
            "hosts",
            PROBLEM,
            f"silent: {format_names(silent)}",
            "look at their relays; of a host that is gone, remove the key from hosts_dir of the"
            " control hosts, and reload them",
        )
    if keyless:
        yield Finding(
            "hosts",
            PROBLEM,
            f"without a key at the leader: {format_names(keyless)}",
            "put their public keys into hosts_dir of the control hosts, and reload them",
        )
    if not silent and not keyless:
        yield Finding("hosts", OK, f"all connected: {len(found.hosts)}")


def _check_candidates(found: Fleet) -> Iterator[Finding]:
    """Tell who is there to lead next."""
    rows = found.candidates
    said = ", ".join(describe_candidate(row) for row in rows) or "the leader has not looked yet"
    stand_by = [row for row in rows if not row.leads]
    if rows and not stand_by:
        yield Finding(
            "candidates",
            PROBLEM,
            f"none stands by: when {escape(found.leader)} ends, nobody leads",
            "on the other control hosts: systemctl status 'trackd-lead@*'",
        )
    elif len(stand_by) == 1:
        yield Finding("candidates", NOTE, f"{said}; only one stands by", "three are better")
    else:
        yield Finding("candidates", OK if rows else NOTE, said)
    if len({row.version for row in rows}) > 1:
        yield Finding(
            "candidates",
            NOTE,
            "their versions of trackd differ: an older one may not be able to lead next",
            "go on with the upgrade: all candidates on one day",
        )


def _check_members(etcd: EtcdHealth) -> Iterator[Finding]:
    """Tell what is wrong with etcd itself, as the leader has found it."""
    if etcd.alarms:
        yield Finding(
            "etcd alarms",
            PROBLEM,
            describe_alarms(etcd),
            "CORRUPT: replace the member. NOSPACE: compact, etcdctl defrag, etcdctl alarm disarm",
        )
    if silent := [row.member for row in etcd.members if not row.answers]:
        yield Finding(
            "etcd members",
            PROBLEM,
            f"silent: {format_names(silent)}",
            "look at etcd on these control hosts, or correct etcd_endpoints",
        )
    old = {row.version for row in etcd.members if row.answers and _is_old(row.version)}
    if old:
        yield Finding(
            "etcd version",
            PROBLEM,
            f"{format_names(sorted(old))} may end leases that live",
            "use etcd 3.5.16 or newer",
        )
    full = fullest(etcd)
    if full is not None and (full.size or 0) >= _FULL * (full.quota or 0):
        yield Finding(
            "etcd size",
            PROBLEM,
            f"{format_size(full.size or 0)} of {format_size(full.quota or 0)} at {full.member}:"
            " beyond that etcd takes no change",
            "is it compacted? Then etcdctl defrag, one member after the other",
        )
    if etcd.compacted >= _COMPACTION_SECONDS and (etcd.revisions or 0) >= _MANY_REVISIONS:
        yield Finding(
            "etcd compaction",
            PROBLEM,
            f"none for {format_duration(etcd.compacted)}, {etcd.revisions} changes since",
            "set ETCD_AUTO_COMPACTION_RETENTION=1h for all members",
        )
    if not (etcd.alarms or silent or old):
        yield Finding("etcd members", OK, describe_etcd(etcd))


def _is_old(version: str) -> bool:
    """Return whether a version of etcd has faults that a fleet meets."""
    numbers = tuple(int(each) for each in re.findall(r"\d+", version)[:3])
    return numbers < _ETCD_FROM


def _check_etcd(status: dict[str, Any], found: Fleet) -> Iterator[Finding]:
    """Tell how the leader's writes to etcd go."""
    if status["store"] == "failing":
        yield Finding(
            "etcd",
            PROBLEM,
            f"changes cannot be stored: {escape(status['store_problem'])}",
            "on a control host: etcdctl endpoint status --cluster; etcdctl alarm list",
        )
    else:
        yield Finding(
            "etcd",
            OK,
            f"{format_size(found.store_bytes)} stored, a commit takes"
            f" {format_rtt(found.commit_mean)} on average",
        )


# -- what the daemon replies, in parts ---------------------------------------------------------


def _check_versions(status: dict[str, Any]) -> Iterator[Finding]:
    said = f"trackctl {__version__}, daemon {escape(status['server'])}"
    if status["server"] == __version__:
        yield Finding("versions", OK, said)
    else:
        yield Finding(
            "versions",
            NOTE,
            said,
            "they understand each other; after an upgrade, restart the daemon",
        )


def _check_clock(tracker: Tracker, status: dict[str, Any], clock: float) -> Iterator[Finding]:
    """Compare the daemon's clocks with those of this process."""
    offset = clock - boottime()
    if abs(offset) > _CLOCK_SECONDS:
        yield Finding(
            "clock",
            NOTE,
            f"the daemon's CLOCK_BOOTTIME is {offset:+.1f} s from ours (a time namespace);"
            " the client allows for it",
        )
    else:
        yield Finding("clock", OK, "the daemon's CLOCK_BOOTTIME is that of this process")
    yield from _check_wall(tracker, status, clock)


def _check_wall(tracker: Tracker, status: dict[str, Any], clock: float) -> Iterator[Finding]:
    """Tell whether the wall clock was set since the last event: `log --since` goes by it."""
    if not status.get("history"):
        return
    revision = max(0, status["revision"] - 1)
    events = tracker._request("log", {"after": revision, "limit": 1}, in_session=False)["events"]  # noqa: SLF001
    if not events:
        return
    _, then, wall, *_ = events[0]
    moved = (time.time() - wall) - (clock - then)
    if abs(moved) > _CLOCK_SECONDS:
        yield Finding(
            "wall clock",
            NOTE,
            f"it was set by {moved:+.0f} s since {format_time(wall)}",
            "allow for it when you read the times of trackctl log",
        )


def _check_store(status: dict[str, Any], settings: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    directory = escape(settings.get("state_dir", {}).get("value", ""))
    if status["store"] == "failing":
        yield Finding(
            "store",
            PROBLEM,
            f"changes cannot be stored: {escape(status['store_problem'])}",
            f"make room in {directory or 'the state directory'}, or make it writable",
        )
    elif status["store"] == "off":
        yield Finding(
            "store",
            NOTE,
            "state is kept in memory only: a restart forgets who holds what",
            "set state_dir, unless that is meant",
        )
    else:
        stored = status.get("store_bytes")
        yield Finding("store", OK, f"ok{'' if stored is None else f', {format_size(stored)}'}")


def _check_aside(settings: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Look for state files that a daemon set aside because they were damaged."""
    directory = settings.get("state_dir", {}).get("value")
    if not isinstance(directory, str) or not directory:
        return
    try:
        found = sorted(Path(directory).glob("*.damaged-*"))
    except OSError:
        return
    files = [each for each in found if not each.name.endswith(("-wal", "-shm"))]
    if files:
        yield Finding(
            "state files",
            PROBLEM,
            f"set aside as damaged: {format_names([each.name for each in files])}",
            f"the state was lost then: look at the disk and the log, then remove {directory}/"
            "*.damaged-*",
        )


def _check_tunnels(tracker: Tracker, status: dict[str, Any]) -> Iterator[Finding]:
    """Compare the tunnels that are wanted with those that are there."""
    ago = None if is_covered(status) else seconds_since_dial(tracker, status["revision"])
    said = judge(status, ago).text
    if status["store"] == "failing" or not status["tracked"]:
        return  # said elsewhere, or nothing is wanted yet
    if is_covered(status):
        yield Finding("tunnels", OK, said)
        return
    dials = status["inflight"] or ago is not None
    yield Finding(
        "tunnels",
        PROBLEM,
        said,
        "trackctl explain says why they are missing"
        if dials
        else "start agents (trackctl sessions lists those that run); trackctl explain says more",
    )


def _check_configuration(status: dict[str, Any]) -> Iterator[Finding]:
    last = status.get("reload")
    if last is None:
        return
    if last["error"] is not None:
        yield Finding(
            "reload",
            PROBLEM,
            f"the last one was refused: {escape(last['error'])}",
            "correct the configuration; trackd check-config names every mistake",
        )
    elif last["refused"]:
        refused = format_names([name for name, _ in last["refused"]])
        yield Finding(
            "reload", PROBLEM, f"changed in the file, but not live: {refused}", "restart the daemon"
        )


def _check_http(status: dict[str, Any]) -> Iterator[Finding]:
    problem = status.get("http_problem")
    if problem:
        yield Finding(
            "http",
            PROBLEM,
            f"the status page and the metrics are not served: {problem}",
            "free the address or choose another; the daemon tries again by itself",
        )
    elif status.get("http"):
        yield Finding("http", OK, f"served on {status['http']}")


def _check_counts(status: dict[str, Any], settings: dict[str, dict[str, Any]]) -> Iterator[Finding]:
    """Compare what there is with the limits of the configuration."""
    near = False
    for count, limit, what in (
        (status["sessions"], "max_sessions", "sessions"),
        (status["waiting"], "max_waiters", "waiting requests"),
        (status["tracked"], "max_tracked", "tracked proxies"),
        (status["claimed"] + status["inflight"], "max_leases", "leases"),
    ):
        most = settings.get(limit, {}).get("value")
        if isinstance(most, int) and count >= _FULL * most:
            near = True
            yield Finding(
                "limits",
                PROBLEM,
                f"{count} of {most} {what}",
                f"find out why there are so many, or raise {limit}; trackctl reload",
            )
    if not near:
        yield Finding(
            "limits", OK, f"far from every limit; {format_count(status['sessions'], 'session')}"
        )


def _check_process(pid: int) -> Iterator[Finding]:
    """Look at the daemon's descriptors, where this user may."""
    process = Path("/proc", str(pid))
    try:
        limits = (process / "limits").read_text(encoding="ascii")
        used = sum(1 for _ in (process / "fd").iterdir())
    except OSError:
        yield Finding(
            "descriptors", NOTE, f"process {pid} does not show them to this user; sudo sees them"
        )
        return
    found = re.search(r"^Max open files\s+(\d+)", limits, re.MULTILINE)
    if found is None:
        return
    most = int(found[1])
    said = f"{used} of {most} in use"
    if used >= _FULL * most:
        yield Finding(
            "descriptors",
            PROBLEM,
            f"{said}: the daemon is killed when none are left",
            "raise LimitNOFILE= in the unit, or ulimit -n, and restart the daemon",
        )
    else:
        yield Finding("descriptors", OK, said)
