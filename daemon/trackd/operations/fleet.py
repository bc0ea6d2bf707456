"""The operations of a fleet: who leads, and how its hosts are; and what its admins do to it.

Only a leader has them. The daemon of one host refuses them.
"""

from __future__ import annotations

from typing import Final

from trackd.operations.call import Call
from trackd.operations.context import Context, log_act
from trackd.operations.operation import Fields, Operation
from trackd.operations.runtime import FleetFacts
from trackd.sessions.sessions import Session
from trackd_client.errors import Code
from trackd_client.wire import requests
from trackd_client.wire.errors import ProtocolError


def fleet(context: Context, _call: Call, _request: requests.Fleet) -> Fields:
    """Return who leads and how well, a row for each host and candidate, and how etcd is."""
    facts, runtime = _facts_of(context), context.runtime
    took = runtime.metrics.commit_seconds
    commits = took.total
    return {
        "leader": facts.host,
        "term": facts.term,
        "uptime": context.now() - runtime.started,
        "failovers": context.state.epoch - 1,
        "commits": commits,
        "commit_mean": took.sum / commits if commits else 0.0,
        "commit_p50": took.quantile(0.5),
        "commit_p99": took.quantile(0.99),
        "store_bytes": runtime.store_bytes() or 0,
        "hosts": facts.hosts(),
        "candidates": facts.candidates(),
        "etcd": facts.etcd(),
    }


def drop_host(
    context: Context, call: Call, _session: Session, request: requests.DropHost
) -> Fields:
    """End all sessions of a host."""
    facts, host = _facts_of(context), request.host
    known = any(row["host"] == host for row in facts.hosts())
    dropped = [each for each in context.state.sessions if each.peer.host == host]
    freed = 0
    for session in dropped:
        freed += len(context.decide.end_session(session, "host_lost", call.peer))
    facts.forget(host)
    if known:
        log_act(context, call, "drop_host", dropped=host, sessions=len(dropped), freed=freed)
    return {"known": known, "sessions": len(dropped), "freed": freed}


def yield_lead(
    context: Context, call: Call, _session: Session, request: requests.YieldLead
) -> Fields:
    """Let another candidate lead, if the term is the one that is meant.

    The relays send a request that got no reply to the next leader, which is not meant.
    """
    facts = _facts_of(context)
    yielded = request.term == facts.term
    if yielded:
        log_act(context, call, "yield_lead", term=facts.term)
        facts.yield_lead()
    return {"yielded": yielded, "leader": facts.host, "term": facts.term}


def _facts_of(context: Context) -> FleetFacts:
    """Return the facts about a leader.

    Raises:
        ProtocolError: this daemon is none.
    """
    facts = context.runtime.fleet
    if facts is None:
        raise ProtocolError(
            Code.INVALID_ARGUMENT, "this daemon serves its own host alone, and belongs to no fleet"
        )
    return facts


OPERATIONS: Final[dict[str, Operation]] = {
    "fleet": Operation(requests.Fleet.decode, fleet, costly=True),
    "drop_host": Operation(requests.DropHost.decode, drop_host, changes=True, admin=True),
    "yield_lead": Operation(requests.YieldLead.decode, yield_lead, admin=True),
}
