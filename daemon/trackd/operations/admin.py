"""The operations of admins: take leases back, end sessions, forget proxies, reload."""

from __future__ import annotations

from typing import Final

from trackd.operations.call import Call
from trackd.operations.context import Context, log_act
from trackd.operations.operation import Fields, Operation
from trackd.sessions.sessions import Session
from trackd.state.decide import peer_of
from trackd.state.forgetting import forget_group, forget_proxy
from trackd_client.wire import requests


def force_release(
    context: Context, call: Call, _session: Session, request: requests.ForceRelease
) -> Fields:
    """Take a lease back from its session."""
    assert call.peer is not None
    lease = request.lease
    released = context.decide.force_release(lease, call.peer)
    if released is None:
        return {"released": False, "session": None, "name": None}
    session, name = released
    log_act(context, call, "force_release", lease=lease, session=session.id, proxy=name)
    return {"released": True, "session": session.id, "name": name}


def end_session(
    context: Context, call: Call, _session: Session, request: requests.EndSession
) -> Fields:
    """End a session and release its leases."""
    ended = context.state.sessions.by_id.get(request.session)
    if ended is None:
        return {"ended": False, "freed": []}
    freed = context.decide.end_session(ended, "admin", call.peer)
    log_act(context, call, "end_session", session=request.session, freed=len(freed))
    return {"ended": True, "freed": freed}


def forget(context: Context, call: Call, _session: Session, request: requests.Forget) -> Fields:
    """Stop tracking a proxy, or a group, until newer gossip mentions it."""
    if request.group is not None:
        return _forget_group(context, call, request.group, request.generation)
    name = request.name
    assert call.peer is not None
    assert name is not None
    tombstone = forget_proxy(context.decide, name, call.peer)
    claimed = context.state.tracker.holder(name) is not None
    if tombstone is None:
        return {"forgotten": False, "claimed": claimed, "until": None}
    log_act(context, call, "forget", proxy=name)
    return {"forgotten": True, "claimed": claimed, "until": tombstone.until}


def _forget_group(context: Context, call: Call, group: str, generation: int | None) -> Fields:
    assert call.peer is not None
    forgotten = forget_group(context.decide, group, generation, call.peer)
    if forgotten is None:
        return {"forgotten": False, "claimed": False, "until": None, "count": 0}
    log_act(
        context, call, "forget", group=group, generation=generation, proxies=len(forgotten.names)
    )
    tracker = context.state.tracker
    return {
        "forgotten": True,
        "claimed": any(tracker.holder(name) is not None for name in forgotten.names),
        "until": forgotten.until,
        "count": len(forgotten.names),
    }


def resume(context: Context, call: Call, _session: Session, _request: requests.Resume) -> Fields:
    """End the pauses after failed dials: that of the host, and those of sessions."""
    assert call.peer is not None
    ended = context.decide.pauses.resume(peer_of(call.peer))
    if ended:
        log_act(context, call, "resume", pauses=ended)
    return {"resumed": ended}


def reload(context: Context, call: Call, _session: Session, _request: requests.Reload) -> Fields:
    """Ask for a reload of the configuration; `status` has its outcome."""
    runtime = context.runtime
    runtime.reloads_asked = max(runtime.reloads_asked, runtime.reloads) + 1
    log_act(context, call, "reload")
    runtime.ask_reload()
    return {"reloads": runtime.reloads_asked}


OPERATIONS: Final[dict[str, Operation]] = {
    "force_release": Operation(
        requests.ForceRelease.decode, force_release, changes=True, admin=True
    ),
    "end_session": Operation(requests.EndSession.decode, end_session, changes=True, admin=True),
    "forget": Operation(requests.Forget.decode, forget, changes=True, admin=True),
    "resume": Operation(requests.Resume.decode, resume, changes=True, admin=True),
    "reload": Operation(requests.Reload.decode, reload, admin=True),
}
