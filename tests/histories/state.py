"""The state that events make, kept by the pure rules, and what contradicts it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf
from typing import Any

from histories.vocabulary import Call
from trackd.rules.marks import UNMARKED, Mark
from trackd.rules.tracker import Tracker
from trackd_client import Event, Proxy

#: Fields of `status` that follow from the rules, and the attributes of the tracker.
_COUNTS = {
    "tracked": "tracked_count",
    "desired": "desired_count",
    "target": "target",
    "claimed": "claimed_count",
    "claimed_desired": "claimed_desired_count",
    "inflight": "inflight",
    "last_lease": "last_lease",
    "connection_count": "connection_count",
}


class State:
    """What is so after the events that were applied.

    Attributes:
        tracker: the rules; its clock stands still, so that nothing expires but by an event.
        opened: the revision at which each session was opened.
        ended: likewise, for those that have ended.
        owners: the session of each lease that is held.
        adopted: leases that were granted by `adopt`.
        is_paused: whether dials ever paused: from then on, refusals are not judged.
        paused: sessions that ever paused by themselves: then others may be served before them.
    """

    def __init__(self, cluster: str) -> None:
        self.tracker = Tracker(cluster, clock=lambda: 0.0)
        self.opened: dict[int, int] = {}
        self.ended: dict[int, int] = {}
        self.owners: dict[int, int] = {}
        self.adopted: set[int] = set()
        self.is_paused = False
        self.paused: set[int] = set()
        self._epoch: int | None = None

    def is_open(self, session: int) -> bool:
        return session in self.opened and session not in self.ended

    def means(self, principals: Sequence[str], name: str | None) -> bool:
        """Return whether principals mean a name (rule 7)."""
        return self.tracker.resolve(principals) == name

    # -- events -------------------------------------------------------------------------------

    def apply(self, event: Event) -> Iterator[str]:
        """Apply an event, and yield what the rules do not allow about it."""
        fields, session = event.fields, event.fields.get("session")
        match event.kind:
            case "daemon_started":
                if self._epoch is not None and fields["epoch"] != self._epoch + 1:
                    yield f"epoch {fields['epoch']} follows {self._epoch}"
                self._epoch = fields["epoch"]
            case "session_opened":
                if session in self.opened:
                    yield f"session {session} was opened before"
                self.opened[fields["session"]] = event.revision
            case "session_ended":
                yield from self._end(event)
            case "lease_granted":
                yield from self._grant(fields)
            case "proxy_claimed":
                yield from self._claim(fields)
            case "lease_released":
                yield from self._release(fields)
            case "proxy_tracked" | "proxy_changed":
                yield from self._track(event.kind, fields)
            case "proxy_expired" | "proxy_forgotten":
                if self._place(fields["name"]) != (fields["group"], fields["generation"]):
                    yield f"{fields['name']} is not tracked as the event says"
                self.tracker.forget(fields["name"])
            case "proxy_marked":
                mark = Mark(inf, None) if fields["terminating"] else UNMARKED
                self.tracker.mark(fields["name"], mark)
            case "lease_renamed":
                yield from self._rename(fields)
            case "lease_offered":
                if not self.tracker.offer(fields["lease"]):
                    yield f"lease {fields['lease']} is offered and not held"
            case "connection_count":
                if fields["before"] != self.tracker.connection_count:
                    yield f"the connection count was {self.tracker.connection_count} before"
                self.tracker.set_connection_count(fields["count"])
            case "dials_paused":
                self.is_paused = True
                if fields["scope"] == "session":
                    self.paused.add(fields["session"])
            case _:
                pass

    def _end(self, event: Event) -> Iterator[str]:
        session = event.fields["session"]
        if not self.is_open(session):
            yield f"session {session} is not open"
        for lease in [lease for lease, owner in self.owners.items() if owner == session]:
            yield f"session {session} ended and kept lease {lease}"
        self.ended[session] = event.revision

    def _grant(self, fields: Any) -> Iterator[str]:
        tracker, lease, session = self.tracker, fields["lease"], fields["session"]
        if not self.is_open(session):
            yield f"session {session} is not open and was granted lease {lease}"
        if lease <= tracker.last_lease:
            yield f"session {session} was granted lease {lease}, which was granted before"
            return
        if lease != tracker.last_lease + 1:
            yield f"session {session} was granted lease {lease}, not {tracker.last_lease + 1}"
            return
        reason = "bootstrap" if tracker.bootstrap else "need" if tracker.need else None
        if fields["reason"] == "adopt":
            self.adopted.add(lease)
            tracker.grant()
        elif reason is None:
            yield f"lease {lease} was granted, and there is neither bootstrap nor need"
            tracker.grant()
        else:
            if fields["reason"] != reason:
                yield f"lease {lease} was granted by {fields['reason']}, but the reason is {reason}"
            tracker.try_acquire()
        self.owners[lease] = session

    def _claim(self, fields: Any) -> Iterator[str]:
        lease, name = fields["lease"], fields["name"]
        yield from self._check_owner(fields)
        if self.tracker.leases.get(lease, name) is not None:
            yield f"lease {lease}, which is not in flight, claimed {name}"
        elif not self.tracker.is_available(name):
            yield f"lease {lease} claimed {name}, which lease {self.tracker.holder(name)} holds"
        elif self.tracker.claim(lease, [name]) != name:
            yield f"{name} is not how a name is resolved"

    def _rename(self, fields: Any) -> Iterator[str]:
        lease, name, before = fields["lease"], fields["name"], fields["before"]
        yield from self._check_owner(fields)
        if self.tracker.leases.get(lease) != before:
            yield f"lease {lease} does not hold {before}, and is renamed"
        elif self.tracker.is_tracked(before) or not self.tracker.is_tracked(name):
            yield f"lease {lease} is renamed from {before} to {name}, which gossip does not ask for"
        elif self.tracker.holder(name) is not None:
            yield f"lease {lease} takes {name}, which lease {self.tracker.holder(name)} holds"
        else:
            self.tracker.rename(lease, name)

    def _release(self, fields: Any) -> Iterator[str]:
        lease = fields["lease"]
        yield from self._check_owner(fields)
        name = self.tracker.lease_name(lease)
        if fields["cause"] == "claim_timeout" and name is not None:
            yield f"lease {lease} has claimed {name}, and was taken back because it did not claim"
        if name != fields["name"]:
            yield f"lease {lease} holds {name}, not {fields['name']}"
        self.tracker.release(lease)
        self.owners.pop(lease, None)

    def _check_owner(self, fields: Any) -> Iterator[str]:
        owner = self.owners.get(fields["lease"])
        if owner is None:
            yield f"lease {fields['lease']} is not held"
        elif owner != fields["session"]:
            yield f"lease {fields['lease']} belongs to session {owner}, not {fields['session']}"

    def _track(self, kind: str, fields: Any) -> Iterator[str]:
        name, old = fields["name"], self._place(fields["name"])
        if kind == "proxy_tracked" and old is not None:
            yield f"{name} is tracked already"
        if kind == "proxy_changed" and old != (fields["old_group"], fields["old_generation"]):
            yield f"{name} was not tracked as the event says"
        if kind == "proxy_changed" and old == (fields["group"], fields["generation"]):
            yield f"{name} has not changed"
        self.tracker.track_expected([Proxy(name, fields["group"], fields["generation"])])

    def _place(self, name: str) -> tuple[str, int] | None:
        proxy = self.tracker.get(name)
        return None if proxy is None else (proxy.group, proxy.generation)

    # -- replies ------------------------------------------------------------------------------

    def contradictions(self, call: Call) -> Iterator[str]:
        """Yield what is not true of a reply at this revision."""
        reply, fields, session = call.reply or {}, call.fields, call.session
        error = reply.get("error")
        if error is not None:
            yield from self._error(error, call)
            return
        if session and call.op not in ("open", "close") and not self.is_open(session):
            yield f"session {session} is not open"
        match call.op:
            case "is_claimed" | "claim" | "adopt":
                yield from self._name(call)
            case "try_acquire" | "acquire" if reply["lease"] is not None:
                if self.tracker.leases.get(reply["lease"], "") is not None:
                    yield f"lease {reply['lease']} is not in flight"
            case "release" if fields["lease"] in self.tracker.leases:
                yield f"lease {fields['lease']} is held"
            case "track_expected":
                for name, *place in (row[:3] for row in fields["proxies"]):
                    if self._place(name) != tuple(place):
                        yield f"{name} is not tracked as it was mentioned"
            case "set_connection_count" if self.tracker.connection_count != fields["count"]:
                count = self.tracker.connection_count
                yield f"the connection count is {count}, not {fields['count']}"
            case "status":
                yield from self._status(reply)
            case "snapshot" if reply["base"] == call.revision and reply["cursor"] is None:
                yield from self._rows(reply)
            case _:
                pass

    def _error(self, error: str, call: Call) -> Iterator[str]:
        lease = call.fields.get("lease")
        owner = None if lease is None else self.owners.get(lease)
        if error == "not_owner" and owner in (None, call.session):
            yield f"lease {lease} belongs to session {owner}"
        if error == "lease_expired" and owner is not None:
            yield f"lease {lease} is held"
        if error in ("session_unknown", "session_ended") and self.is_open(call.session):
            yield f"session {call.session} is open"

    def _name(self, call: Call) -> Iterator[str]:
        """Check a reply about a name: to `is_claimed`, `claim` or `adopt`."""
        reply, tracker = call.reply or {}, self.tracker
        means = tracker.resolve(call.fields["principals"])
        name, lease = reply["name"], call.fields.get("lease", reply.get("lease"))
        if name != means:
            yield f"{list(call.fields['principals'])} means {means}, not {name}"
            return
        is_free = name is None or tracker.is_available(name)
        if call.op == "is_claimed":
            if reply["claimed"] == is_free:
                yield f"{name} is {'free' if is_free else 'claimed'}"
        elif reply.get("claimed", lease is not None):
            if tracker.leases.get(lease, "") != name:
                yield f"lease {lease} does not hold {name}"
        elif reply.get("reason", "held") == "held":
            if is_free and name is not None:
                yield f"it was refused as held, but {name} is free"
        elif reply["reason"] == "has_claimed":
            if tracker.lease_name(lease) is None:
                yield f"lease {lease} has not claimed"
        elif reply["reason"] == "lease_gone" and lease in tracker.leases:
            yield f"lease {lease} is held"

    def _status(self, reply: Any) -> Iterator[str]:
        counts = {field: getattr(self.tracker, name) for field, name in _COUNTS.items()}
        counts |= {"sessions": len(self.opened) - len(self.ended), "epoch": self._epoch}
        if reply.get("store") == "failing" and reply.get("epoch") == (self._epoch or 0) + 1:
            del counts["epoch"]  # this start is stored, and has its event, when there is room
        for field in counts.keys() & reply.keys():
            if reply[field] != counts[field]:
                yield f"{field} is {counts[field]}, not {reply[field]}"

    def _rows(self, reply: Any) -> Iterator[str]:
        """Check the rows of a listing that has one page."""
        tracker, of = self.tracker, reply["of"]
        known: dict[Any, Any]
        rows: dict[Any, Any]
        if of == "leases":
            known = {
                lease: (owner, tracker.lease_name(lease)) for lease, owner in self.owners.items()
            }
            rows = {row["lease"]: (row["session"], row["name"]) for row in reply["rows"]}
        elif of == "sessions":
            owners = [*self.owners.values()]
            known = {each: owners.count(each) for each in self.opened if self.is_open(each)}
            rows = {row["session"]: row["leases"] for row in reply["rows"]}
        else:
            names = {proxy[0] for proxy in tracker} | set(filter(None, tracker.leases.values()))
            known = {name: (self._place(name), tracker.holder(name)) for name in names}
            rows = {
                row["name"]: (
                    (row["group"], row["generation"]) if row["tracked"] else None,
                    row["lease"],
                )
                for row in reply["rows"]
            }
        if rows != known:
            yield f"it lists other {of} than there are: {rows}, not {known}"
