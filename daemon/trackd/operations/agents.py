"""The operations of agents: each changes the state, and returns the fields of its reply."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Any, Final

from trackd.host.logs import fields as log_fields
from trackd.host.processes import command_of, has_exited, start_time
from trackd.operations import quotas
from trackd.operations.call import Call
from trackd.operations.context import Context, log_act
from trackd.operations.operation import PARKED, Fields, Operation
from trackd.operations.repeats import Heard, Seen
from trackd.operations.replies import grant_fields
from trackd.rules.gossip import runs
from trackd.rules.mentions import GossipRow
from trackd.sessions.identity import Peer, Process
from trackd.sessions.sessions import ParkedWatch, Session, sentence_of
from trackd.state import exactly_once, gossip
from trackd_client import __version__
from trackd_client.errors import Code
from trackd_client.wire import requests
from trackd_client.wire.checks import (
    addresses_of,
    check_principals,
    check_row,
    terminating_of,
)
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import MINOR, VERSION

log = logging.getLogger("trackd.agents")

#: What this daemon can do beyond minor version 0; `hello` lists it.
FEATURES: tuple[str, ...] = (
    "state_in_replies",
    "stale_reply",
    "older_events",
    "terminating",
    "outcomes",
    "reports",
    "offers",
    "targets",
    "hints",
    "follow",
)


def hello(context: Context, _call: Call, _request: requests.Hello) -> Fields:
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


def ping(context: Context, _call: Call, _request: requests.Ping) -> Fields:
    """Return a reply, which shows that the daemon serves, and which state."""
    return context.state_fields()


def open_session(context: Context, call: Call, request: requests.Open, token: bytes) -> Fields:
    """Begin a session for the process that asks."""
    peer = call.peer
    assert peer is not None
    quotas.check_session(context, peer.user)
    if peer.host:  # nothing here knows a process of another host
        process, command = call.attested
    else:
        process = _process_of(peer)
        command = command_of(peer.pid) if peer.pid else ""
    return _opened(
        context,
        context.decide.open_session(
            token, peer, process, request.name, request.version, request.labels, command
        ),
    )


def open_again(
    context: Context, call: Call, session: Session, _request: requests.RequestFields
) -> Fields:
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


def close(context: Context, _call: Call, session: Session, _request: requests.Close) -> Fields:
    """End the session and release its leases."""
    context.decide.end_session(session, "closed")
    return {}


def heartbeat(
    _context: Context, _call: Call, _session: Session, _request: requests.Heartbeat
) -> Fields:
    """Return an empty reply; like every request, this one keeps the session alive."""
    return {}


def track_expected(
    context: Context, call: Call, session: Session, request: requests.TrackExpected
) -> Fields:
    """Track the proxies of a gossip message."""
    damper = context.runtime.damper
    if damper is None:
        return {"changed": _track(context, session, request.proxies, call.heard)}
    tracker, host = context.state.tracker, session.peer.host
    with damper.due(request.proxies, context.now(), tracker, host) as due:
        return {"changed": _track(context, session, due)}


def _track(
    context: Context, session: Session, entries: list[Any], heard: Heard | None = None
) -> int:
    """Take in rows of gossip; return how many proxies changed their group or generation.

    Args:
        context: what the request is answered from.
        session: who sent them.
        entries: the rows, as they were received.
        heard: the same rows, with what was seen in them before.
    """
    tracker, max_ttl = context.state.tracker, context.config.max_ttl
    seen = None if heard is None else heard.seen
    if seen is None or seen.edition is not tracker.edition or seen.max_ttl != max_ttl:
        unknown, long = tracker.unknown(entries, max_ttl)
        if unknown:
            return _track_news(context, session, entries, unknown, long)
        rows: list[GossipRow] = list(entries) if long else entries
        _lower_ttls(rows, long, max_ttl)
        longer = [entries[i] for i in long]
        parts = [(ttl, tracker.mentions.shared(names)) for ttl, names in runs(rows)]
        seen = Seen(tracker.edition, max_ttl, rows, parts, longer)
        if heard is not None:
            heard.keep(seen)
    _count_longer(context, session, seen.longer)
    said = gossip.NOTHING
    if tracker.marks.by_name or context.decide.flips.waiting:  # else no word changes anything
        if seen.said is None:
            seen.said = terminating_of(entries)
        said = seen.said
    gossip.mention(context.decide, session, seen.rows, said, seen.runs)
    return 0


def _track_news(
    context: Context, session: Session, entries: list[Any], unknown: list[int], long: list[int]
) -> int:
    """Take in rows of gossip of which some say something new: those at `unknown`."""
    rows: list[GossipRow] = list(entries)
    for i in unknown:
        rows[i] = check_row(entries[i], i, context.config.max_name)
    rows = [row[:4] for row in rows]
    _check_tracked(context, rows)
    max_ttl = context.config.max_ttl
    places = [i for i in sorted(unknown + long) if (rows[i][3] or 0) > max_ttl]
    _count_longer(context, session, [rows[i] for i in places])
    _lower_ttls(rows, places, max_ttl)
    said, addresses = terminating_of(entries), addresses_of(entries)
    return gossip.track(context.decide, session, rows, said, addresses)


def set_connection_count(
    context: Context, call: Call, _session: Session, request: requests.SetConnectionCount
) -> Fields:
    """Set the connection count."""
    if context.config.count_role == "admin":
        context.check_admin(
            call, "set_connection_count", "setting the connection count needs the role admin here"
        )
    count = request.count
    if count != context.state.tracker.connection_count:
        if context.is_admin(call):  # an agent that sets it does its own work, as often as it likes
            log_act(context, call, "set_connection_count", count=count)
        context.decide.set_count(count)
    return {}


def is_claimed(
    context: Context, _call: Call, session: Session, request: requests.IsClaimed
) -> Fields:
    """Return whether a lease holds the proxy that the principals mean."""
    name, claimed = context.decide.look(session, request.principals)
    return {"claimed": claimed, "name": name, **(_hint(context) if claimed else {})}


def try_acquire(
    context: Context, _call: Call, session: Session, _request: requests.TryAcquire
) -> Fields:
    """Grant a lease, or refuse it."""
    _check_leases(context)
    quotas.check_lease(context, session)
    return _granted(context, session, context.decide.try_acquire(session))


def acquire(context: Context, call: Call, session: Session, _request: requests.Acquire) -> Any:
    """Grant a lease, or park the request until one can be granted or its deadline passes."""
    _check_leases(context)
    quotas.check_lease(context, session)
    lease = context.decide.try_acquire(session)
    if lease is not None:
        return _granted(context, session, lease)
    if len(context.state.queue) >= context.config.max_waiters:
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"{context.config.max_waiters} requests wait for a lease, which is the limit",
        )
    quotas.check_waiter(context, session)
    context.runtime.metrics.refusals[context.decide.refusal(session)] += 1
    context.decide.park(session, call.seq, call.deadline, call.route)
    return PARKED


def claim(context: Context, _call: Call, session: Session, request: requests.Claim) -> Fields:
    """Claim a proxy for a lease."""
    lease, config = request.lease, context.config
    _check_owner(context, session, lease)
    if lease in session.expired:
        raise ProtocolError(
            Code.LEASE_EXPIRED,
            f"lease {lease} did not claim within"
            f" {config.claim_timeout:g} s and was taken back; acquire another",
        )
    principals = check_principals(request.principals, config.max_principals, config.max_name)
    name, reason = context.decide.claim(session, lease, principals, follow=request.follow)
    if reason is not None:
        if reason == "held":
            context.runtime.metrics.durations.note_outcome(lease, reason)
            return {"claimed": False, "name": name, "reason": reason, **_hint(context)}
        return {"claimed": False, "name": name, "reason": reason}
    assert name is not None
    return {"claimed": True, "name": name, **_terminating(context, name)}


def _hint(context: Context) -> Fields:
    """Return the field of a reply with what is known of the load balancer, or none."""
    hint = context.decide.hint()
    if hint is None:
        return {}
    return {"hint": {"balancer": hint.balancer, "in_a_row": hint.in_a_row}}


def _terminating(context: Context, name: str) -> Fields:
    """Return the field of a reply that says that a claimed proxy is terminating, or none."""
    tracker = context.state.tracker
    return {"terminating": True} if tracker.marks.by_name and tracker.is_terminating(name) else {}


def release(context: Context, _call: Call, session: Session, request: requests.Release) -> Fields:
    """Release a lease, and take in how its dial ended; a second release is not an error."""
    _check_owner(context, session, request.lease)
    if request.failed is not None:
        context.decide.report(session, request.lease, request.failed, request.retry_after)
        if request.lease in session.leases:
            context.runtime.metrics.durations.note_outcome(request.lease, request.failed)
    return {"released": context.decide.release(session, request.lease)}


def retire(context: Context, _call: Call, session: Session, request: requests.Retire) -> Fields:
    """Mark the proxy that a lease holds as terminating; a second time changes nothing."""
    _check_owner(context, session, request.lease)
    retired = context.decide.retire(session, request.lease)
    if retired is None:
        raise ProtocolError(
            Code.INVALID_ARGUMENT, f"lease {request.lease} is in flight: it holds no proxy"
        )
    return {"retired": retired}


def report(context: Context, _call: Call, session: Session, request: requests.Report) -> Fields:
    """Take in signs of life of tunnels, and return which of their leases are gone.

    That a lease reports for the first time is stored. While nothing can be, such a lease is left
    out, and counts with a later report.
    """
    reports, state = request.reports, context.state
    if context.runtime.store_problem is not None:
        reports = [
            [lease, rtt]
            for lease, rtt in reports
            if lease in state.lives.by_lease or lease not in session.leases
        ]
    return {"gone": context.decide.tunnels.report(session, reports, context.now())}


def offer(context: Context, _call: Call, session: Session, request: requests.Offer) -> Fields:
    """Offer the proxy that a lease holds to others; a second time changes nothing."""
    lease = request.lease
    _check_owner(context, session, lease)
    if lease in session.leases and session.offered not in (None, lease):
        raise ProtocolError(
            Code.LIMIT_EXCEEDED,
            f"lease {session.offered} of this session is offered already; offer one at a time",
        )
    offered = context.decide.offer(session, lease)
    if offered is None:
        raise ProtocolError(Code.INVALID_ARGUMENT, f"lease {lease} is in flight: it holds no proxy")
    return {"offered": offered}


def adopt(context: Context, _call: Call, session: Session, request: requests.Adopt) -> Fields:
    """Grant a lease that claims at once, for a tunnel that is open already."""
    _check_leases(context)
    lease, name = context.decide.adopt(session, request.principals, follow=request.follow)
    if lease is None or name is None:
        return {"lease": lease, "name": name}
    return {"lease": lease, "name": name, **_terminating(context, name)}


def cancel(context: Context, _call: Call, session: Session, request: requests.Cancel) -> Fields:
    """Cancel an earlier request: it never runs, and a lease that it was granted is taken back."""
    return {"cancelled": exactly_once.give_up(context.decide, session, request.target)}


def watch_session(
    context: Context, call: Call, session: Session, _request: requests.WatchSession
) -> Any:
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


def _lower_ttls(rows: list[GossipRow], places: list[int], max_ttl: float) -> None:
    """Lower the TTLs at these places to `max_ttl`."""
    for i in places:
        name, group, generation, _ = rows[i]
        rows[i] = name, group, generation, max_ttl


def _count_longer(context: Context, session: Session, rows: Sequence[GossipRow]) -> None:
    """Count rows whose TTL is above `max_ttl`; log that once for each `max_ttl`."""
    most, runtime = context.config.max_ttl, context.runtime
    runtime.metrics.limited_ttls += len(rows)
    if rows and runtime.logged_max_ttl != most:
        runtime.logged_max_ttl = most
        name, _, _, ttl = rows[0]
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


def _granted(context: Context, session: Session, lease: int | None) -> Fields:
    fields = grant_fields(context.decide, lease)
    if lease is None:
        context.runtime.metrics.refusals[context.decide.refusal(session)] += 1
        if (wait := context.decide.retry_after(session)) is not None:
            fields["retry_after"] = wait
    return fields


def _check_owner(context: Context, session: Session, lease: int) -> None:
    held = context.state.leases.get(lease)
    if held is not None and held.session is not session:
        raise ProtocolError(Code.NOT_OWNER, f"lease {lease} belongs to another session")


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
    "hello": Operation(requests.Hello.decode, hello),
    "ping": Operation(requests.Ping.decode, ping),
    # Only for a session that is open already, whatever the fields; `dispatch` opens new ones.
    "open": Operation(requests.RequestFields.decode, open_again, repeatable=True),
    "heartbeat": Operation(requests.Heartbeat.decode, heartbeat, repeatable=True),
    "report": Operation(requests.Report.decode, report, repeatable=True),
    "watch_session": Operation(requests.WatchSession.decode, watch_session),
    "is_claimed": Operation(requests.IsClaimed.decode, is_claimed, repeatable=True),
    "track_expected": Operation(requests.TrackExpected.decode, track_expected, changes=True),
    "set_connection_count": Operation(
        requests.SetConnectionCount.decode, set_connection_count, changes=True
    ),
    "try_acquire": Operation(requests.TryAcquire.decode, try_acquire, changes=True),
    "acquire": Operation(requests.Acquire.decode, acquire, changes=True),
    "claim": Operation(requests.Claim.decode, claim, changes=True),
    "adopt": Operation(requests.Adopt.decode, adopt, changes=True),
    "retire": Operation(requests.Retire.decode, retire, changes=True),
    "offer": Operation(requests.Offer.decode, offer, changes=True),
    "release": Operation(requests.Release.decode, release, changes=True, never_stale=True),
    "cancel": Operation(requests.Cancel.decode, cancel, changes=True, never_stale=True),
    "close": Operation(requests.Close.decode, close, changes=True, never_stale=True),
}
