"""Checks a history: can each reply that agents received be true, in the order of the events?

The events of the daemon are an order of all changes. The checker replays them one by one through
the pure rules (`trackd.rules`), and requires

- that the rules allow each change: a grant only by need or bootstrap, a claim only of a free name;
- that each change of a recorded session was asked for by one call, after that call began and
  before its reply: the order respects real time;
- that each reply is true at its revision, and that its revision is not smaller than one that
  anybody had received before the call began;
- that no change that a reply acknowledges is missing.

A call without a reply may have happened or not. One that was refused leaves no trace; but a copy of
it that was under way may run later: after a restart, or at once when the store had failed. What
comes of itself is an input: proxies that expire, leases that did not claim in time, sessions whose
process ended. So the clock stands still, and nothing expires but by its event. Pauses, budgets,
targets and reports are not judged.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import accumulate, islice
from math import inf
from operator import itemgetter
from typing import Any

from histories.state import State
from histories.vocabulary import Call
from trackd_client import Event

#: Kinds of events that the same request may cause after the one that its reply acknowledges.
_AFTER = {"proxy_marked", "proxy_addressed", "dial_failed", "dials_paused", "dials_resumed"}

#: Operations whose calls are found by what they ask for, also when they had a reply.
_SEVERAL = {"cancel", "track_expected", "set_connection_count"}

#: What a change is called, by the replies that acknowledge it and by the calls that may cause it.
Key = tuple[Any, ...]


def check(
    history: Iterable[Call], events: Iterable[Event], cluster: str = "example.com"
) -> list[str]:
    """Return what is wrong with a history, a sentence each; nothing: it may be true.

    Args:
        history: all calls of the recorded agents, with the call that opened each session.
        events: all events from revision 1, in any order; several times, when several saw them.
        cluster: name of the cluster.
    """
    return _Check(list(history), list(events), cluster).run()


class _Check:
    def __init__(self, history: list[Call], events: list[Event], cluster: str) -> None:
        self.wrong: list[str] = []
        self.history = history
        self.events = self._in_order(events)
        self.state = State(cluster)
        self.recorded = {call.session for call in history if call.op == "open"}
        answered = sorted((call.end, call.revision) for call in history if call.reply is not None)
        self._ends = [end for end, _ in answered]
        self._known = list(accumulate((revision for _, revision in answered), max, initial=0))
        self._cancelled = {
            (call.session, call.fields["target"]): call.revision
            for call in history
            if call.op == "cancel" and call.reply is not None
        }
        self._promises = self._find_promises()
        self._starts = [each.revision for each in self.events if each.kind == "daemon_started"]
        self._perhaps: dict[Key, list[Call]] = defaultdict(list)
        for call in history:
            if call.reply is None or call.op in _SEVERAL or _is_refused(call):
                self._perhaps[_cause_of(call)].append(call)
        self._changed: dict[int, int] = defaultdict(int)  # by id of a call of gossip: proxies
        #: Of each lease that was not adopted: revision, session, and the call whose reply has it.
        self._grants: list[tuple[int, int, Call | None]] = []

    def run(self) -> list[str]:
        possible = defaultdict(list)
        for call in self.history:
            if call.reply is not None and self._is_possible(call):
                possible[call.revision].append(call)
        for event in self.events:
            at = f"revision {event.revision}: "
            self.wrong += [at + sentence for sentence in self.state.apply(event)]
            self._find_call(event)
            for call in possible[event.revision]:
                self._judge(call)
        self._judge_waiting()
        return self.wrong

    def _in_order(self, events: list[Event]) -> list[Event]:
        """Return each event once, in order."""
        found: dict[int, Event] = {}
        for event in events:
            other = found.setdefault(event.revision, event)
            if (event.kind, event.fields) != (other.kind, other.fields):
                self.wrong.append(f"revision {event.revision} is told twice: {other} and {event}")
        ordered = [found[revision] for revision in sorted(found)]
        last = 0
        for event in ordered:
            if event.revision != last + 1:
                self.wrong.append(f"revisions {last + 1} to {event.revision - 1} are missing")
            last = event.revision
        return ordered

    # -- real time --------------------------------------------------------------------------

    def _known_before(self, call: Call) -> int:
        """Return the largest revision that anybody had received when a call began."""
        return self._known[bisect_left(self._ends, call.start)]

    def _is_possible(self, call: Call) -> bool:
        """Return whether a reply can have its revision; if not, nothing else is said of it."""
        if not self.events or call.revision > self.events[-1].revision:
            self.wrong.append(f"{call} has a revision that no event has")
            return False
        if (known := self._known_before(call)) > call.revision:
            self.wrong.append(f"{call} is stale: revision {known} was received before it began")
            return False
        return True

    # -- which call asked for which change ----------------------------------------------------

    def _find_promises(self) -> dict[Key, Call]:
        """Return the calls whose replies acknowledge a change, by the change."""
        found: dict[Key, Call] = {}
        for call in sorted(self.history, key=lambda call: call.start):
            if call.op == "open":  # the first one may have had no reply; another one has had it
                found.setdefault(("session_opened", call.session), call)
            for key in _promised(call):
                other = found.setdefault(key, call)
                if other is not call and call.op not in ("open", "close"):
                    self.wrong.append(f"{other} and {call} both acknowledge {_words(key)}")
        return found

    def _find_call(self, event: Event) -> None:
        """Find the call that asked for a change, where there must be one."""
        key, cause = self._key(event), self._cause(event)
        call = self._promises.get(key)
        if call is None and cause is not None:
            call = self._find_unanswered(event, cause)
            if call is None:
                said = f"revision {event.revision}: {event.kind} was not asked for"
                self.wrong.append(f"{said}: {dict(event.fields)}")
        if event.kind == "lease_granted" and event.fields["reason"] != "adopt":
            grant = event.revision, event.fields["session"], self._promises.get(key)
            self._grants.append(grant)
        if call is None:
            return
        if self._known_before(call) >= event.revision:
            self.wrong.append(
                f"revision {event.revision}: {event.kind} was received by somebody before the call"
                f" that asked for it began: {call}"
            )
        owner = event.fields.get("session")
        if event.kind != "connection_count" and owner != call.session:
            self.wrong.append(f"{call} caused {event.kind} of session {owner}")

    def _find_unanswered(self, event: Event, cause: Key) -> Call | None:
        """Return the call that may have asked for a change without a reply that says so.

        Each is the cause of one change, but gossip. Of several, the one that must have happened
        first is taken.
        """
        possible = []
        for call in self._perhaps[cause]:
            after, latest = self._window(call)
            if after < event.revision <= latest and self._fits(call, event):
                possible.append((latest, call.start, call.session, call.seq, call))
        if not possible:
            return None
        *_, call = min(possible)
        if call.op == "track_expected":
            self._changed[id(call)] += 1
        else:
            self._perhaps[cause].remove(call)
        return call

    def _window(self, call: Call) -> tuple[float, float]:
        """Return after which revision a call may have happened, and the last one at which."""
        reply = call.reply
        if reply is None:
            latest = self._cancelled.get((call.session, call.seq), inf)
            return self._known_before(call), latest
        if reply.get("error") == "unavailable":
            return call.revision, inf
        if "error" in reply or self._changed[id(call)] >= reply.get("changed", inf):
            return inf, 0
        if _is_refused(call):
            after, before, *_ = *self._starts[bisect_right(self._starts, call.revision) :], inf, inf
            return after, before
        return self._known_before(call), call.revision

    def _fits(self, call: Call, event: Event) -> bool:
        """Return whether the fields of a request fit a change."""
        fields = event.fields
        match call.op:
            case "claim" | "adopt":  # the name may have been free, or tracked, until now only
                return self.state.means(call.fields["principals"], fields["name"])
            case "track_expected":
                place = [fields["name"], fields["group"], fields["generation"]]
                return any(list(row[:3]) == place for row in call.fields["proxies"])
            case "set_connection_count":
                return bool(call.fields["count"] == fields["count"])
            case _:
                return True

    def _key(self, event: Event) -> Key:
        """Return how replies name a change; see `_promised`."""
        fields = event.fields
        match event.kind:
            case "session_opened" | "session_ended":
                return event.kind, fields["session"]
            case "lease_granted":
                return event.kind, fields["lease"]
            case "proxy_claimed":
                return event.kind, fields["lease"], fields["name"]
            case "lease_released":
                return event.kind, fields["lease"], fields["cause"]
            case _:
                return (event.kind,)

    def _cause(self, event: Event) -> Key | None:
        """Return which calls may have asked for a change (see `_cause_of`); None: it needs none."""
        fields, session = event.fields, event.fields.get("session")
        if event.kind == "connection_count":
            recorded = self.recorded >= self.state.opened.keys()
            return ("set_connection_count", 0) if recorded else None
        if session not in self.recorded:
            return None
        match event.kind, fields.get("reason", fields.get("cause")):
            case "session_opened", _:
                return "open", session
            case "session_ended", "closed":
                return "close", session
            case "lease_granted", "bootstrap" | "need":
                return "grant", session
            case "proxy_claimed", _ if fields["lease"] in self.state.adopted:
                return "adopt", session
            case "proxy_claimed", _:
                return "claim", session, fields["lease"]
            case "lease_released", "asked":
                return "release", session, fields["lease"]
            case "lease_released", "given_up":
                return "cancel", session
            case (("proxy_tracked" | "proxy_changed"), _):
                return "track_expected", session
            case _:
                return None

    # -- replies ------------------------------------------------------------------------------

    def _judge(self, call: Call) -> None:
        """Check a reply against the state at its revision, and against its event."""
        self.wrong += [f"{call}: {sentence}" for sentence in self.state.contradictions(call)]
        reply = call.reply or {}
        for key in [*_promised(call)][-1:]:
            if not self._has_happened(call, key):
                self.wrong.append(f"{call} acknowledges {_words(key)}, which has not happened then")
        if call.op == "track_expected" and "error" not in reply:
            said, found = reply["changed"], self._changed[id(call)]
            if said != found:
                self.wrong.append(f"{call} says that {said} proxies changed, and {found} did")
        if call.op in ("try_acquire", "acquire") and reply.get("lease", 0) is None:
            tracker = self.state.tracker
            is_judged = not self.state.is_paused and self.recorded >= self.state.opened.keys()
            if is_judged and (tracker.bootstrap or tracker.need) and "retry_after" not in reply:
                others = [each for each in self.history if _may_wait_beside(each, call)]
                if not others:
                    self.wrong.append(f"{call} was refused, but there is need or bootstrap")

    def _has_happened(self, call: Call, key: Key) -> bool:
        """Return whether a change is the last one before the revision of its reply."""
        if call.op == "open":  # a second one changes nothing
            return call.session in self.state.opened
        if call.op == "close":  # the session may have ended before, by itself
            return call.session in self.state.ended
        for event in reversed(self.events[: call.revision - self.events[0].revision + 1]):
            if self._key(event) == key:
                return True
            if event.kind not in _AFTER and (call.op, event.kind) != ("acquire", "lease_granted"):
                return False  # waiters that are served together have one revision
        return False

    # -- waiting ------------------------------------------------------------------------------

    def _judge_waiting(self) -> None:
        """Check that nobody was passed over that a listing of the sessions saw wait (rule 13)."""
        acquires = defaultdict(list)
        for call in self.history:
            if call.op == "acquire":
                acquires[call.session].append(call)
        for look in self.history:
            if look.op == "snapshot" and look.reply is not None and look.reply["of"] == "sessions":
                for row in look.reply["rows"]:
                    if row["waiting"]:
                        seen = [c for c in acquires[row["session"]] if _overlap(c, look)]
                        if len(seen) == row["waiting"]:
                            for call in seen:
                                self._judge_waiter(look, call)

    def _judge_waiter(self, look: Call, waiter: Call) -> None:
        """Check the grants while a call was waiting: from a look at it to its own reply."""
        if waiter.reply is None or "error" in waiter.reply:
            return  # nobody knows until when
        if waiter.session in self.state.paused:
            return
        served: dict[int, int] = defaultdict(int)
        first = bisect_right(self._grants, look.revision, key=itemgetter(0))
        for revision, session, call in islice(self._grants, first, None):
            if revision > waiter.revision:
                break
            if call is waiter:
                continue
            served[session] += 1
            is_own = session == waiter.session
            has_come_later = call is not None and (
                call.op == "try_acquire" or (is_own and call.start > look.end)
            )
            if has_come_later or (not is_own and served[session] > 2):
                self.wrong.append(
                    f"{waiter} was passed over: revision {revision} was for session {session}"
                )


# -- what a call is for -------------------------------------------------------------------------


def _promised(call: Call) -> Iterator[Key]:
    """Yield the changes that a reply acknowledges, in order."""
    reply = call.reply
    if reply is None or "error" in reply:
        return
    match call.op:
        case "open":
            yield "session_opened", call.session
        case "close":
            yield "session_ended", call.session
        case "try_acquire" | "acquire" if reply["lease"] is not None:
            yield "lease_granted", reply["lease"]
        case "adopt" if reply["lease"] is not None:
            yield "lease_granted", reply["lease"]
            yield "proxy_claimed", reply["lease"], reply["name"]
        case "claim" if reply["claimed"]:
            yield "proxy_claimed", call.fields["lease"], reply["name"]
        case "release" if reply["released"]:
            yield "lease_released", call.fields["lease"], "asked"
        case _:
            pass


def _is_refused(call: Call) -> bool:
    """Return whether a call had a reply that is only in memory, so that a copy may run later."""
    reply = call.reply or {}
    if call.op in ("try_acquire", "acquire", "adopt", "claim"):
        return not reply.get("lease", reply.get("claimed"))
    return reply.get("error") == "unavailable"


def _cause_of(call: Call) -> Key:
    """Return what a call may do, as `_Check._cause` names it."""
    match call.op:
        case "try_acquire" | "acquire":
            return "grant", call.session
        case "claim" | "release":
            return call.op, call.session, call.fields["lease"]
        case "set_connection_count":
            return call.op, 0
        case _:
            return call.op, call.session


def _overlap(call: Call, other: Call) -> bool:
    return call.start < other.end and call.end > other.start


def _may_wait_beside(call: Call, other: Call) -> bool:
    return call.op == "acquire" and call is not other and _overlap(call, other)


def _words(key: Key) -> str:
    return " ".join(map(str, key))
