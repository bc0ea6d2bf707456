"""The metrics of the daemon: gauges of its state, and the counters of `trackd.state.counters`."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from trackd.host.logs import count_dropped
from trackd.operations.call import Call
from trackd.operations.context import Context
from trackd.operations.operation import Fields
from trackd.operations.quotas import MOST_USERS, QUOTAS, allowed_by, list_users
from trackd.operations.runtime import FleetFacts
from trackd.rules.desired import MOST_GROUPS
from trackd.state.counters import Histogram, Metrics
from trackd.state.coverage import MOST_GAPS, OTHER
from trackd_client import __version__
from trackd_client.wire import requests

Family = list[Any]


def metrics(context: Context, _call: Call, request: requests.Metrics) -> Fields:
    """Return the metrics."""
    wanted, runtime = request.names, context.runtime
    runtime.metrics.quota_refusals["subscriptions"] = runtime.subscribers.refused
    missing = counter(
        "trackd_missing_seconds",
        "Seconds for which wanted connections were missing, each one counted.",
        runtime.coverage.missing_seconds(context.now()),
    )
    gaps = [
        "trackd_group_missing_seconds",
        "counter",
        f"Seconds without a tunnel to a desired proxy, the {MOST_GAPS} largest groups and {OTHER}.",
        ["group"],
        [[[group], seconds] for group, seconds in runtime.gaps.seconds(context.now())],
    ]
    families = [*_gauges(context), missing, gaps, *counter_families(runtime.metrics)]
    if runtime.fleet is not None:
        families += fleet_gauges(runtime.fleet, context.state.epoch)
    return {"families": [each for each in families if wanted is None or each[0] in wanted]}


def _gauges(context: Context) -> list[Family]:
    state, tracker, runtime = context.state, context.state.tracker, context.runtime
    groups, pause = tracker.first_groups(), state.backoff.pause
    tracked = [[[group.name], group.tracked] for group in groups]
    desired = [[[group.name], group.generation] for group in groups]
    claimed = [[[group.name], group.claimed] for group in groups]
    missing = [[[group.name], group.desired - group.claimed] for group in groups]
    info = {"version": __version__, "cluster": tracker.cluster_name}
    build = {"version": __version__, "python": platform.python_version()}
    users = list_users(context)
    of_hosts = ["host"] if any("host" in user for user in users) else []
    used = [
        [[*(user.get(name, "") for name in of_hosts), str(user["uid"]), quota], user[quota]]
        for user in users
        for quota in QUOTAS
    ]
    allowed = [[[quota], most] for quota, most in allowed_by(context.config).items()]
    return [
        gauges("trackd_info", "The daemon.", list(info), [[list(info.values()), 1]]),
        gauges("trackd_build_info", "The program.", list(build), [[list(build.values()), 1]]),
        gauge("trackd_start_time_seconds", "Unix time of the start.", runtime.wall),
        gauge("trackd_epoch", "Starts of the daemon with this state.", state.epoch),
        gauge("trackd_revision", "Changes of the state, across restarts.", context.decide.revision),
        gauges(
            "trackd_tracked_proxies",
            f"Tracked proxies by group, the first {MOST_GROUPS} groups by name.",
            ["group"],
            tracked,
        ),
        gauges(
            "trackd_group_generation",
            f"Largest generation of a group, the first {MOST_GROUPS} by name.",
            ["group"],
            desired,
        ),
        gauges(
            "trackd_group_claimed_proxies",
            f"Desired proxies of a group that are claimed, the first {MOST_GROUPS} by name.",
            ["group"],
            claimed,
        ),
        gauges(
            "trackd_group_missing_proxies",
            f"Desired proxies of a group without a tunnel, the first {MOST_GROUPS} by name.",
            ["group"],
            missing,
        ),
        gauge("trackd_groups", "Groups that have a tracked proxy.", tracker.group_count),
        gauge("trackd_all_tracked_proxies", "Tracked proxies.", tracker.tracked_count),
        gauge("trackd_desired_proxies", "Desired proxies.", tracker.desired_count),
        gauge("trackd_claimed_proxies", "Claimed proxies, tracked or not.", tracker.claimed_count),
        gauge(
            "trackd_claimed_desired_proxies",
            "Desired proxies that are claimed.",
            tracker.claimed_desired_count,
        ),
        gauge("trackd_target_connections", "Connections that are wanted.", tracker.target),
        gauge(
            "trackd_missing_connections",
            "Wanted connections that are missing.",
            tracker.missing_count,
        ),
        gauge(
            "trackd_connection_count",
            "Most connections wanted; 0 or less: one to every desired proxy.",
            tracker.connection_count,
        ),
        gauge("trackd_inflight_leases", "Leases that have not claimed.", tracker.inflight),
        gauge("trackd_waiting_requests", "Requests that wait for a lease.", len(state.queue)),
        gauge("trackd_sessions", "Sessions.", len(state.sessions)),
        gauge(
            "trackd_dial_pause_seconds",
            "Seconds until the pause after failed dials ends.",
            0.0 if pause is None else max(0.0, pause.until - context.now()),
        ),
        gauge(
            "trackd_dial_pause_failures",
            "Failed dials in a row that the pause counts.",
            0 if pause is None else pause.failures,
        ),
        gauge(
            "trackd_paused_sessions",
            "Sessions that pause after failed dials of their own.",
            len(state.paused),
        ),
        gauges(
            "trackd_quota_used",
            f"What a user uses of each quota, the {MOST_USERS} users nearest to one.",
            [*of_hosts, "uid", "quota"],
            used,
        ),
        gauges("trackd_quota_allowed", "What each quota allows a user.", ["quota"], allowed),
        gauge(
            "trackd_store_failing",
            "Whether changes cannot be stored just now.",
            int(runtime.store_problem is not None),
        ),
        gauge("trackd_store_bytes", "Size of the state file.", runtime.store_bytes() or 0),
    ]


def fleet_gauges(facts: FleetFacts, epoch: int) -> list[Family]:
    """Return the gauges that only the leader of a fleet has.

    Args:
        facts: about the leader.
        epoch: how often a process has begun with this state.
    """
    connected = [row["connected"] for row in facts.hosts()]
    hosts = [[["connected"], connected.count(True)], [["silent"], connected.count(False)]]
    leads = [row["leads"] for row in facts.candidates()]
    candidates = [[["leads"], leads.count(True)], [["stands_by"], leads.count(False)]]
    return [
        gauges("trackd_fleet_leader", "The host that leads.", ["host"], [[[facts.host], 1]]),
        gauge("trackd_fleet_term", "Number of the leader's term.", facts.term),
        gauge("trackd_fleet_failovers", "How often a leader has taken over.", epoch - 1),
        gauges("trackd_fleet_hosts", "Hosts by whether the leader hears them.", ["state"], hosts),
        gauges("trackd_fleet_candidates", "Candidates that are there.", ["state"], candidates),
        *_etcd_gauges(facts.etcd()),
    ]


def _etcd_gauges(health: dict[str, Any] | None) -> list[Family]:
    """Return the gauges of etcd; without samples where the leader does not know."""
    members = [] if health is None else health["members"]
    alarms = [] if health is None else [each["kind"] for each in health["alarms"]]
    revisions = None if health is None else health["revisions"]
    counts = Counter(("answers" if row["answers"] else "silent", row["version"]) for row in members)
    sizes = [row["size"] for row in members if row["size"] is not None]
    quotas = [row["quota"] for row in members if row["quota"] is not None]
    kinds = {} if health is None else dict.fromkeys(("CORRUPT", "NOSPACE"), 0) | Counter(alarms)
    return [
        gauges(
            "trackd_fleet_etcd_members",
            "Members of etcd by whether they answer the leader, and their version.",
            ["state", "version"],
            [[list(key), count] for key, count in sorted(counts.items())],
        ),
        _known(
            "trackd_fleet_etcd_bytes", "Size of etcd's largest database.", max(sizes, default=None)
        ),
        _known("trackd_fleet_etcd_quota_bytes", "Smallest quota of it.", min(quotas, default=None)),
        gauges(
            "trackd_fleet_etcd_alarms",
            "Alarms of etcd.",
            ["kind"],
            [[[kind], count] for kind, count in sorted(kinds.items())],
        ),
        _known(
            "trackd_fleet_etcd_revisions", "Changes of etcd since its last compaction.", revisions
        ),
    ]


def _known(name: str, text: str, value: int | None) -> Family:
    """Return a gauge, which has no sample when its value is not known."""
    return gauges(name, text, [], [] if value is None else [[[], value]])


def counter_families(counters: Metrics) -> list[Family]:
    """Return the counters and histograms."""
    return [
        _by("trackd_grants", "Leases granted, by the reason.", "reason", counters.grants),
        _by(
            "trackd_refusals",
            "Leases refused or asked to wait, by the reason.",
            "reason",
            counters.refusals,
        ),
        counter("trackd_claims", "Proxies claimed, adopted tunnels included.", counters.claims),
        counter(
            "trackd_duplicates",
            "Claims and adoptions that met a proxy which another lease holds.",
            counters.duplicates,
        ),
        _by(
            "trackd_aims",
            "Dials aimed at the address of a missing proxy that have ended, by the outcome.",
            "outcome",
            counters.aims,
        ),
        _by(
            "trackd_dial_failures",
            "Dials that agents reported as failed, by the reason.",
            "reason",
            counters.dial_failures,
        ),
        _histograms(
            "trackd_dial_seconds",
            "Time from a grant to its claim, or to its release without one, by the outcome.",
            "outcome",
            counters.durations.dials,
        ),
        _by("trackd_releases", "Leases released, by the cause.", "cause", counters.releases),
        _histograms(
            "trackd_tunnel_lifetime_seconds",
            "Time from a claim to its release, by the cause of the release.",
            "cause",
            counters.durations.tunnels,
        ),
        counter(
            "trackd_stale",
            "Leases whose reports stopped for too long, so that they were taken back.",
            counters.stale,
        ),
        counter("trackd_sessions_opened", "Sessions opened.", counters.sessions_opened),
        _by("trackd_sessions_ended", "Sessions ended.", "reason", counters.sessions_ended),
        counter("trackd_gossip_messages", "Gossip messages.", counters.gossip_messages),
        counter("trackd_gossip_proxies", "Mentions of proxies.", counters.gossip_proxies),
        counter(
            "trackd_gossip_lowered_generations",
            "Mentions that lowered the generation of a proxy within its group.",
            counters.lowered_generations,
        ),
        counter(
            "trackd_gossip_limited_ttls",
            "Mentions whose TTL was above max_ttl and counted as that.",
            counters.limited_ttls,
        ),
        counter("trackd_expiries", "Proxies that expired.", counters.expiries),
        _by("trackd_errors", "Requests answered with an error.", "code", counters.errors),
        _by(
            "trackd_quota_refusals",
            "Requests and subscriptions refused for a quota.",
            "quota",
            dict.fromkeys(QUOTAS, 0) | counters.quota_refusals,
        ),
        _by("trackd_admin_acts", "Acts of administrators.", "operation", counters.admin_acts),
        counter("trackd_events", "Changes of the state.", counters.events),
        counter(
            "trackd_log_lines_dropped",
            "Log lines that standard error or the journal did not take, or not in time.",
            count_dropped(),
        ),
        _histograms(
            "trackd_request_seconds",
            "Time from the receipt of a request's batch to its reply, by operation.",
            "operation",
            counters.request_seconds,
        ),
        _histogram("trackd_batch_requests", "Requests of one batch.", counters.batch_requests),
        _histogram("trackd_commit_seconds", "Time of a commit.", counters.commit_seconds),
        _histogram(
            "trackd_crash_to_release_seconds",
            "Time from the kernel's word that a process has exited to the commit that frees"
            " its leases.",
            counters.crash_seconds,
        ),
    ]


def gauge(name: str, text: str, value: float) -> Family:
    """Return a gauge without labels."""
    return [name, "gauge", text, [], [[[], value]]]


def gauges(name: str, text: str, labels: Sequence[str], samples: list[Any]) -> Family:
    """Return a gauge with labels; a sample is the label's values and a number."""
    return [name, "gauge", text, list(labels), samples]


def counter(name: str, text: str, value: float) -> Family:
    """Return a counter without labels."""
    return [name, "counter", text, [], [[[], value]]]


def _by(name: str, text: str, label: str, counts: Mapping[str, int]) -> Family:
    samples = [[[value], number] for value, number in sorted(counts.items())]
    return [name, "counter", text, [label], samples]


def _histogram(name: str, text: str, histogram: Histogram) -> Family:
    return [name, "histogram", text, [], [histogram.sample()]]


def _histograms(name: str, text: str, label: str, found: Mapping[str, Histogram]) -> Family:
    samples = [each.sample([value]) for value, each in sorted(found.items())]
    return [name, "histogram", text, [label], samples]
