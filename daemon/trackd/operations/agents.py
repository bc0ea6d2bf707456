"""The operations of agents: each checks its fields, changes the state, returns its reply."""

from __future__ import annotations

import contextlib
import logging
from typing import Any, Final

from trackd.host.logs import fields as log_fields
from trackd.host.processes import command_of, has_exited, start_time
from trackd.operations import quotas
from trackd.operations.call import Call
from trackd.operations.context import Context, log_act, log_refused_act
from trackd.operations.operation import PARKED, Fields, Operation, value_of
from trackd.operations.replies import grant_fields
from trackd.rules.tracker import GossipRow
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import ParkedWatch, Session, sentence_of
from trackd_client import __version__
from trackd_client.errors import Code
from trackd_client.wire.checks import MAX_UINT64, check_count, check_name, check_seconds, check_text
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import MAX_LABEL_BYTES, MAX_LABELS, MINOR, VERSION

log = logging.getLogger("trackd.agents")

#: What this daemon can do beyond minor version 0; `hello` lists it.
FEATURES: tuple[str, ...] = ("state_in_replies", "stale_reply", "older_events")
_INT64 = 2**63


def hello(context: Context, _call: Call) -> Fields:
    """Return who the daemon is and what it accepts."""
    state, config = context.state, context.config
    return {
        "server": __version__,
        "protocol": VERSION,
        "minor": MINOR,
        "features": FEATURES,
        "cluster": context.config.cluster_name,
        "epoch": state.epoch,
        "tracker_id": state.tracker_id,
        "boot_id": context.runtime.boot_id,
        "clock": context.now(),
        "limits": config.limits._asdict(),
        "events": context.runtime.events,
    }


def ping(context: Context, _call: Call) -> Fields:
    """Return a reply, which shows that the daemon serves, and which state."""
    return context.state_fields()


def open_session(context: Context, call: Call, token: bytes, peer: Peer) -> Fields:
    """Begin a session for the process that asks."""
    body = call.body
    cluster = body.get("cluster")
    if cluster is not None and cluster != context.config.cluster_name:
        raise ProtocolError(
            Code.WRONG_CLUSTER,
            f"this daemon serves the cluster {context.config.cluster_name!r}, not {cluster!r:.99}",
        )
    name = check_text(value_of(body, "name", ""), "name", context.config.max_name)
    version = check_text(value_of(body, "version", ""), "version", context.config.max_name)
    labels = value_of(body, "labels", {})
    if type(labels) is not dict:
        raise ProtocolError(Code.INVALID_ARGUMENT, "labels must be a map")
    if len(labels) > MAX_LABELS:
        raise ProtocolError(Code.LIMIT_EXCEEDED, f"{len(labels)} labels; {MAX_LABELS} are allowed")
    for key, value in labels.items():
        check_name(key, "a label's name", MAX_LABEL_BYTES)
        check_text(value, f"label {key}", MAX_LABEL_BYTES)
    quotas.check_session(context, peer.uid)
    process = _process_of(peer)
    command = command_of(peer.pid) if peer.pid else ""
    return _opened(
        context,
        context.decide.open_session(token, peer, process, name, version, labels, command),
    )


def open_again(context: Context, call: Call, session: Session) -> Fields:
    """Return the session that is open already, to the process that opened it."""
    if call.peer is not None and call.peer.pid != session.peer.pid:
        raise ProtocolError(
            Code.PERMISSION_DENIED,
            f"the session belongs to the process {session.peer.pid}; each process opens its own",
        )
    return _opened(context, session)


def _opened(context: Context, session: Session) -> Fields:
    ttl = None if session.process is not None else context.config.heartbeat_ttl
    return {"session": session.id, "heartbeat_ttl": ttl}


def close(context: Context, _call: Call, session: Session) -> Fields:
    """End the session and release its leases."""
    context.decide.end_session(session, "closed")
    return {}


def heartbeat(_context: Context, _call: Call, _session: Session) -> Fields:
    """Return an empty reply; like every request, this one keeps the session alive."""
    return {}


def track_expected(context: Context, call: Call, session: Session) -> Fields:
    """Track the proxies of a gossip message."""
    entries = call.body.get("proxies")
    if type(entries) is not list:
        raise ProtocolError(Code.INVALID_ARGUMENT, "proxies must be an array")
    if len(entries) > context.config.max_proxies:
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"{len(entries)} proxies in one message; {context.config.max_proxies} are allowed",
        )
    unknown = context.state.tracker.unknown(entries, context.config.max_ttl)  # nearly always: none
    if not unknown:
        context.decide.mention(session, entries)
        return {"changed": 0}
    rows: list[GossipRow] = list(entries)
    for i in unknown:
        rows[i] = _row(context, entries[i], i)
    _check_tracked(context, rows)
    _limit_ttls(context, session, rows)
    return {"changed": context.decide.track(session, rows)}


def set_connection_count(context: Context, call: Call, _session: Session) -> Fields:
    """Set the connection count."""
    count = check_count(call.body.get("count"), "count", least=-_INT64, most=_INT64 - 1)
    assert call.peer is not None
    is_admin = context.roles.is_admin(call.peer)
    if context.config.count_role == "admin" and not is_admin:
        log_refused_act(call, "set_connection_count")
        raise ProtocolError(
            Code.PERMISSION_DENIED, "setting the connection count needs the role admin here"
        )
    if count != context.state.tracker.connection_count:
        if is_admin:  # an agent that sets it does its own work, as often as it likes
            log_act(context, call, "set_connection_count", count=count)
        context.decide.set_count(count)
    return {}


def is_claimed(context: Context, call: Call, _session: Session) -> Fields:
    """Return whether a lease holds the proxy that the principals mean."""
    principals = _principals(context, call)
    tracker = context.state.tracker
    name = tracker.resolve(principals)
    return {"claimed": name is not None and tracker.holder(name) is not None, "name": name}


def try_acquire(context: Context, _call: Call, session: Session) -> Fields:
    """Grant a lease, or refuse it."""
    _check_leases(context)
    quotas.check_lease(context, session)
    return _granted(context, context.decide.try_acquire(session))


def acquire(context: Context, call: Call, session: Session) -> Any:
    """Grant a lease, or park the request until one can be granted or its deadline passes."""
    _check_leases(context)
    quotas.check_lease(context, session)
    lease = context.decide.try_acquire(session)
    if lease is not None:
        return _granted(context, lease)
    if len(context.state.queue) >= context.config.max_waiters:
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"{context.config.max_waiters} requests wait for a lease, which is the limit",
        )
    quotas.check_waiter(context, session)
    context.runtime.metrics.refusals[context.decide.refusal()] += 1
    deadline = call.body.get("deadline")
    context.decide.park(session, call.seq, deadline, call.route)
    return PARKED


def claim(context: Context, call: Call, session: Session) -> Fields:
    """Claim a proxy for a lease."""
    lease = _own_lease(context, call, session)
    if lease in session.expired:
        raise ProtocolError(
            Code.LEASE_EXPIRED,
            f"lease {lease} did not claim within"
            f" {context.config.claim_timeout:g} s and was taken back; acquire another",
        )
    name, reason = context.decide.claim(session, lease, _principals(context, call))
    if reason is not None:
        return {"claimed": False, "name": name, "reason": reason}
    return {"claimed": True, "name": name}


def release(context: Context, call: Call, session: Session) -> Fields:
    """Release a lease; a second release is not an error."""
    return {"released": context.decide.release(session, _own_lease(context, call, session))}


def adopt(context: Context, call: Call, session: Session) -> Fields:
    """Grant a lease that claims at once, for a tunnel that is open already."""
    principals = _principals(context, call)
    _check_leases(context)
    lease, name = context.decide.adopt(session, principals)
    return {"lease": lease, "name": name}


def cancel(context: Context, call: Call, session: Session) -> Fields:
    """Cancel an earlier request: it never runs, and a lease that it was granted is taken back."""
    target = check_count(call.body.get("target"), "target", least=1)
    return {"cancelled": context.decide.give_up(session, target)}


def watch_session(context: Context, call: Call, session: Session) -> Any:
    """Park the request until there are notices for the session."""
    context.replies.watch(session, ParkedWatch(call.seq, call.route))
    return PARKED


def _check_tracked(context: Context, rows: list[GossipRow]) -> None:
    """Refuse gossip that would go beyond `max_tracked`."""
    tracker, most = context.state.tracker, context.config.max_tracked
    if tracker.tracked_count + len(rows) > most:  # otherwise there is room even if all are new
        new = {row[0] for row in rows if tracker.get(row[0]) is None}
        if tracker.tracked_count + len(new) > most:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"{tracker.tracked_count} proxies are tracked, and {len(new)} would be new;"
                f" {most} are allowed",
            )


def _limit_ttls(context: Context, session: Session, rows: list[GossipRow]) -> None:
    """Lower the TTLs above `max_ttl` to it; count them, and log that once for each `max_ttl`."""
    most, runtime = context.config.max_ttl, context.runtime
    for i, (name, group, generation, ttl) in enumerate(rows):
        if ttl is None or ttl <= most:
            continue
        rows[i] = name, group, generation, most
        runtime.metrics.limited_ttls += 1
        if runtime.logged_max_ttl != most:
            runtime.logged_max_ttl = most
            log.warning(
                "gossip with a TTL above max_ttl; counted from now on, and not logged again",
                extra=log_fields(proxy=name, ttl=ttl, max_ttl=most, session=session.id),
            )


def _check_leases(context: Context) -> None:
    if len(context.state.leases) >= context.config.max_leases:
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"{context.config.max_leases} leases are held, which is the limit",
        )


def _granted(context: Context, lease: int | None) -> Fields:
    fields = grant_fields(context.decide, lease)
    if lease is None:
        context.runtime.metrics.refusals[context.decide.refusal()] += 1
        if (wait := context.decide.retry_after()) is not None:
            fields["retry_after"] = wait
    return fields


def _own_lease(context: Context, call: Call, session: Session) -> int:
    lease = check_count(call.body.get("lease"), "lease", least=1)
    held = context.state.leases.get(lease)
    if held is not None and held.session is not session:
        raise ProtocolError(Code.NOT_OWNER, f"lease {lease} belongs to another session")
    return lease


def _principals(context: Context, call: Call) -> list[str]:
    principals = call.body.get("principals")
    config = context.config
    if type(principals) is not list:
        raise ProtocolError(Code.INVALID_ARGUMENT, "principals must be an array")
    if len(principals) > config.max_principals:
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"{len(principals)} principals; {config.max_principals} are allowed",
        )
    for principal in principals:
        if not (  # the fast way for nearly all
            type(principal) is str
            and 0 < len(principal) <= config.max_name
            and principal.isascii()
            and principal.isprintable()
        ):
            check_name(principal, "a principal", config.max_name)
    return principals


def _row(context: Context, entry: Any, index: int) -> GossipRow:
    if type(entry) is not list or len(entry) < 4:
        raise ProtocolError(
            Code.INVALID_ARGUMENT,
            f"proxies[{index}] must be an array of name, group, generation and ttl",
        )
    name, group, generation, ttl = entry[:4]
    try:
        check_name(name, "name", context.config.max_name)
        check_text(group, "group", context.config.max_name)
        if type(generation) is not int or not 0 <= generation <= MAX_UINT64:
            check_count(generation, "generation")
        if ttl is not None:
            ttl = check_seconds(ttl, "ttl")
    except ProtocolError as error:
        raise ProtocolError(error.code, f"proxies[{index}].{error}") from None
    return name, group, generation, ttl if ttl is not None and ttl > 0 else None


def _process_of(peer: Peer) -> Process | None:
    """Return the process of a peer, or None when it is not visible and must send heartbeats.

    Raises:
        ProtocolError: the process exited before its request was read.
    """
    if peer.pid == 0:
        return None
    with contextlib.suppress(OSError):  # without free descriptors: as if /proc were hidden
        start = start_time(peer.pid)
        if start is not None:
            return Process(peer.pid, start)
        if has_exited(peer.pid):
            reason = "process_exited"
            raise ProtocolError(Code.SESSION_ENDED, sentence_of(reason), reason=reason)
    return None


OPERATIONS: Final[dict[str, Operation]] = {
    "hello": Operation(hello),
    "ping": Operation(ping),
    # Only for a session that is open already; `dispatch` opens new ones.
    "open": Operation(open_again, repeatable=True),
    "heartbeat": Operation(heartbeat, repeatable=True),
    "watch_session": Operation(watch_session),
    "is_claimed": Operation(is_claimed, repeatable=True),
    "track_expected": Operation(track_expected, changes=True),
    "set_connection_count": Operation(set_connection_count, changes=True),
    "try_acquire": Operation(try_acquire, changes=True),
    "acquire": Operation(acquire, changes=True),
    "claim": Operation(claim, changes=True),
    "adopt": Operation(adopt, changes=True),
    "release": Operation(release, changes=True, never_stale=True),
    "cancel": Operation(cancel, changes=True, never_stale=True),
    "close": Operation(close, changes=True, never_stale=True),
}
