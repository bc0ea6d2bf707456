"""The operations that only look: the state, its reasons, the settings, the history.

These operations need no session. They change nothing, but for the daemon's own `probe`, which
writes to the store to see whether it works.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Final

from trackd.config.settings import SETTINGS
from trackd.operations.call import Call
from trackd.operations.context import Context, host_fields, store_word
from trackd.operations.metrics import metrics
from trackd.operations.operation import PROBE, Fields, Operation
from trackd.operations.quotas import allowed_by, list_users
from trackd.operations.snapshot import life_fields, pause_fields, proxy_row, snapshot
from trackd.state.changes import Probed
from trackd.state.decide import MOST_ALIASES, Decisions
from trackd.state.pauses import MOST_DIALS
from trackd_client import __version__
from trackd_client.errors import Code
from trackd_client.wire import requests
from trackd_client.wire.errors import ProtocolError

#: Missing proxies that `explain` names.
MOST_MISSING: Final = 100
#: Proxies that `explain` names because lost claims met them most, of all and of the last in a row.
MOST_MET: Final = 5


def probe(context: Context, call: Call, _request: requests.RequestFields) -> Fields:
    """Store a record, and return counts to this process itself."""
    if call.peer is None or call.peer.host or call.peer.pid != os.getpid():
        raise ProtocolError(Code.UNKNOWN_OPERATION, f"there is no operation {PROBE!r}")
    state, tracker = context.state, context.state.tracker
    context.runtime.requests -= 1  # not a request of a client
    if context.runtime.store_problem is None:
        context.decide.do(Probed())
    return {
        "desired": tracker.desired_count,
        "claimed_desired": tracker.claimed_desired_count,
        "claimed": tracker.claimed_count,
        "inflight": tracker.inflight,
        "waiting": len(state.queue),
        "sessions": len(state.sessions),
        "store": store_word(context),
    }


def status(context: Context, _call: Call, _request: requests.Status) -> Fields:
    """Return the counts of everything."""
    state, tracker, runtime = context.state, context.state.tracker, context.runtime
    fields: Fields = {
        "cluster": tracker.cluster_name,
        "server": __version__,
        "pid": os.getpid(),
        "epoch": state.epoch,
        "tracker_id": state.tracker_id,
        "uptime": context.now() - runtime.started,
        "mode": "agent mesh" if tracker.connection_count <= 0 else "proxy peering",
        "connection_count": tracker.connection_count,
        "proxy_expiry": tracker.proxy_expiry,
        "tracked": tracker.tracked_count,
        "desired": tracker.desired_count,
        "target": tracker.target,
        "claimed": tracker.claimed_count,
        "claimed_desired": tracker.claimed_desired_count,
        "missing_seconds": runtime.coverage.missing_seconds(context.now()),
        "full_at": runtime.coverage.full_at(context.now()),
        "inflight": tracker.inflight,
        "waiting": len(state.queue),
        "sessions": len(state.sessions),
        "last_lease": tracker.last_lease,
        "requests": runtime.requests,
        "store": store_word(context),
        "store_problem": runtime.store_problem,
        "store_bytes": runtime.store_bytes(),
        "history": len(state.history),
        "events": runtime.events,
        "http": context.config.http,
        "reloads": runtime.reloads,
        "reload": runtime.reload,
        "group_count": tracker.group_count,
        "groups": [
            {
                "group": group.name,
                "generation": group.generation,
                "tracked": group.tracked,
                "desired": group.desired,
                "claimed": group.claimed,
                "source": state.sources.describe(tracker.source_of(group.name), state.sessions),
            }
            for group in tracker.first_groups()
        ],
        "missing_by_group": [
            {"group": gap.name, "missing": gap.missing, "missing_seconds": gap.seconds}
            for gap in runtime.gaps.most_missing(context.now())
        ],
        "quotas": allowed_by(context.config),
        "user_count": len(state.sessions.users),
        "users": list_users(context),
    }
    if tracker.claimed_terminating_count:
        fields["claimed_terminating"] = tracker.claimed_terminating_count
    if tracker.offered_desired_count:
        fields["offered"] = tracker.offered_desired_count
    if runtime.fleet is not None:
        fields["leader"] = runtime.fleet.host
    if runtime.http.problem is not None:
        fields["http_problem"] = runtime.http.problem
    if state.backoff.pause is not None:
        fields["pause"] = pause_fields(state.backoff.pause)
    if state.paused:
        fields["paused_sessions"] = len(state.paused)
    if state.lives.by_lease:
        fields["tunnels"] = {
            "reporting": len(state.lives.by_lease),
            "stale": state.lives.stale,
            "reported": state.lives.reported,
            "rtt": state.lives.rtt,
        }
    return fields


def explain(context: Context, _call: Call, request: requests.Explain) -> Fields:
    """Return the figures of rule 6 and its decision now, or all that is known of one name."""
    if request.name is not None:
        return _explain_name(context, request.name)
    state, tracker = context.state, context.state.tracker
    bootstrap, need = tracker.bootstrap, tracker.need
    retry_after = context.decide.retry_after()
    reason = context.decide.refusal()
    if context.runtime.store_problem is not None:
        reason = "store"
    elif reason == "satisfied":
        reason = "bootstrap" if bootstrap else "need" if need else "satisfied"
    fields: Fields = {
        "would_grant": reason in ("bootstrap", "need"),
        "reason": reason,
        "bootstrap": bootstrap,
        "need": need,
        "connection_count": tracker.connection_count,
        "tracked": tracker.tracked_count,
        "desired": tracker.desired_count,
        "target": tracker.target,
        "claimed": tracker.claimed_count,
        "claimed_desired": tracker.claimed_desired_count,
        "inflight": tracker.inflight,
        "waiting": len(state.queue),
        "missing": tracker.missing(MOST_MISSING),
        "missing_count": tracker.desired_count - tracker.claimed_desired_count,
        "recent": _recent_claims(context.decide),
    }
    if tracker.claimed_terminating_count:
        fields["claimed_terminating"] = tracker.claimed_terminating_count
    if tracker.offered_desired_count:
        fields["offered"] = tracker.offered_desired_count
    if retry_after is not None:
        fields["retry_after"] = retry_after
    if state.backoff.pause is not None:
        fields["pause"] = pause_fields(state.backoff.pause)
    if (hint := context.decide.hint()) is not None:
        fields["hint"] = {
            "balancer": hint.balancer,
            "in_a_row": hint.in_a_row,
            "met": hint.met[:MOST_MET],
            "met_count": len(hint.met),
        }
    if context.decide.pauses.failures:
        fields["outcomes"] = _outcomes(context.decide)
    return fields


def _outcomes(decide: Decisions) -> Fields:
    """Return how many of the last dials ended how, once a failure was reported."""
    ends = [(claim.time, "held" if claim.held else "claimed") for claim in decide.recent]
    ends = sorted([*ends, *decide.pauses.failures])[-MOST_DIALS:]
    return {"dials": len(ends), "ended": dict(Counter(end for _, end in ends))}


def _recent_claims(decide: Decisions) -> Fields:
    """Return how the last claims went: many that met a held proxy hint at the load balancer."""
    met = Counter(claim.name for claim in decide.recent if claim.held)
    expected = since_success = 0.0
    for claim in decide.recent:
        expected += claim.chance
        since_success = since_success + claim.chance if claim.held else 0.0
    return {
        "claims": len(decide.recent) - met.total(),
        "duplicates": met.total(),
        "since": decide.recent[0].time if decide.recent else None,
        "met": [list(pair) for pair in met.most_common(MOST_MET)],
        "expected": expected,
        "expected_since_success": since_success,
    }


def _explain_name(context: Context, name: str) -> Fields:
    state, tracker = context.state, context.state.tracker
    meant = tracker.resolve([name])
    row = proxy_row(state, meant or name)
    lease = row["lease"]
    tombstone = state.tombstones.get(row["name"])
    if lease is not None:
        why = "claimed"
    elif row["tracked"]:
        old = row["generation"] < row["largest"]
        why = "missing" if row["desired"] else "old_generation" if old else "terminating"
    else:
        why = "unknown" if tombstone is None else "forgotten"
    group_source = tracker.source_of(row["group"]) if row["tracked"] else None
    aliases = [] if lease is None else state.leases[lease].principals[:MOST_ALIASES]
    aiming = _explain_aim(context, row)
    fields: Fields = {
        **({} if aiming is None else {"target": aiming}),
        "name": name,
        "meant": meant,
        "why": why,
        "claimed": lease is not None,
        "aliases": [alias for alias in aliases if alias != meant],
        "tombstone": None if tombstone is None else tombstone._asdict(),
        "proxy": row,
        "source": state.sources.describe(row["mentioned_by"], state.sessions),
        "group_source": state.sources.describe(group_source, state.sessions),
        **life_fields(state, lease),
    }
    if lease is not None and tracker.is_offered(lease):
        fields["offered"] = True
    if why == "missing":
        ttl = tracker.mentions.of(row["name"]).ttl
        # A leader hears only what is new of gossip, and so not of all who mention a proxy.
        hears_all = context.runtime.damper is None
        if hears_all and context.decide.lone.has(row["name"], ttl, context.now()):
            fields["only_source"] = True
    return fields


def _explain_aim(context: Context, row: Fields) -> Fields | None:
    """Return whether a dial is aimed at a proxy by its address, or why none is; None without one.

    `state` is `aimed`, `claimed`, `not_desired`, `off`, `failed`, `paused` (other aims have failed,
    and the next grants carry no target), or `ready`.
    """
    tracker, name = context.state.tracker, row["name"]
    targets = tracker.targets
    address = targets.by_name.get(name)
    if address is None:
        return None
    if name in targets.aimed:
        state = "aimed"
    elif not tracker.is_available(name):
        state = "claimed"
    elif not row["desired"]:
        state = "not_desired"
    elif targets.sharing == "off":
        state = "off"
    elif address.held is not None:
        state = "failed"
    else:
        state = "paused" if targets.trust.untargeted else "ready"
    return {
        "address": address.text,
        "uid": address.uid,
        **host_fields(address.host),
        "state": state,
        "lease": targets.aimed.get(name),
        "failures": address.failures,
        "until": address.held,
        "untargeted": targets.trust.untargeted,
    }


def config(context: Context, _call: Call, request: requests.Config) -> Fields:
    """Return the settings; none of them is secret."""
    wanted = request.names
    defaults = {field.name: field.default for field in dataclasses.fields(context.config)}
    return {
        "settings": [
            {
                "name": setting.name,
                "value": getattr(context.config, setting.name),
                "default": defaults[setting.name],
                "live": setting.live,
                "table": setting.table,
            }
            for setting in SETTINGS.values()
            if wanted is None or setting.name in wanted
        ]
    }


def history(context: Context, _call: Call, request: requests.Log) -> Fields:
    """Return the events after a revision, as far as they are kept."""
    kept = context.state.history
    return {
        "events": kept.after(request.after, request.limit, older=request.older),
        "oldest": kept.oldest,
        "newest": context.decide.revision,
        "history": kept.most,
        **context.state_fields(),
    }


OPERATIONS: Final[dict[str, Operation]] = {
    PROBE: Operation(requests.RequestFields.decode, probe),
    "status": Operation(requests.Status.decode, status, costly=True),
    "explain": Operation(requests.Explain.decode, explain, costly=True),
    "snapshot": Operation(requests.Snapshot.decode, snapshot, costly=True),
    "log": Operation(requests.Log.decode, history, costly=True),
    "metrics": Operation(requests.Metrics.decode, metrics, costly=True),
    "config": Operation(requests.Config.decode, config, costly=True),
}
