"""A right history, written by hand, which tests take apart: every kind of call, and a restart."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

from histories.vocabulary import Call
from trackd_client import Event


class Story:
    """Calls by label and events in order, one after the other.

    Attributes:
        calls: by label.
        events: from revision 1.
    """

    def __init__(self) -> None:
        self.calls: dict[str, Call] = {}
        self.events: list[Event] = []
        self._now = 0.0

    @property
    def revision(self) -> int:
        return len(self.events)

    def tick(self) -> float:
        self._now += 1.0
        return self._now

    def happens(self, kind: str, **fields: Any) -> None:
        """Add an event."""
        self.events.append(Event(self.revision + 1, 0.0, 0.0, kind, fields))

    def begins(self, label: str, session: int, op: str, **fields: Any) -> None:
        """Add a call without a reply."""
        self.calls[label] = Call(session, len(self.calls) + 1, op, self.tick(), fields=fields)

    def ends(self, label: str, **reply: Any) -> None:
        """Give a call its reply, with the revision of now."""
        reply = {"revision": self.revision, **reply}
        self.calls[label] = replace(self.calls[label], end=self.tick(), reply=reply)

    def reads(
        self, label: str, session: int, op: str, reply: dict[str, Any], **fields: Any
    ) -> None:
        """Add a call that changes nothing."""
        self.begins(label, session, op, **fields)
        self.ends(label, **reply)

    # -- what tests change ------------------------------------------------------------------

    def says(self, label: str, **reply: Any) -> None:
        """Change the reply of a call."""
        call = self.calls[label]
        self.calls[label] = replace(call, reply={**(call.reply or {}), **reply})

    def asks(self, label: str, **fields: Any) -> None:
        """Change the request of a call."""
        call = self.calls[label]
        self.calls[label] = replace(call, fields={**call.fields, **fields})

    def unanswered(self, label: str) -> None:
        """Take a reply away."""
        self.calls[label] = replace(self.calls[label], end=inf, reply=None)

    def becomes(self, revision: int, kind: str | None = None, **fields: Any) -> None:
        """Change an event."""
        event = self.events[revision - 1]
        self.events[revision - 1] = event._replace(
            kind=kind or event.kind, fields={**(event.fields if kind is None else {}), **fields}
        )


def good() -> Story:
    """Return the right history. The comments are revisions."""
    story = Story()
    story.happens("daemon_started", epoch=1, server="1", pid=7)  # 1
    for session in (1, 2):  # 2, 3
        story.begins(f"open {session}", session, "open")
        story.happens("session_opened", session=session, uid=0, pid=8, name="", command="")
        story.ends(f"open {session}", session=session)
    rows = [["p1", "", 1, None], ["p2", "", 1, None]]
    story.begins("gossip", 1, "track_expected", proxies=rows)
    for name in ("p1", "p2"):  # 4, 5
        story.happens("proxy_tracked", name=name, group="", generation=1, session=1)
    story.ends("gossip", changed=2)
    story.reads("gossip again", 2, "track_expected", {"changed": 0}, proxies=rows)
    for session in (1, 2):  # 6, 7
        story.begins(f"grant {session}", session, "try_acquire")
        reason = "bootstrap" if session == 1 else "need"
        story.happens("lease_granted", lease=session, session=session, reason=reason)
        story.ends(f"grant {session}", lease=session)
    story.reads("enough", 2, "try_acquire", {"lease": None})
    story.begins("claim p1", 1, "claim", lease=1, principals=["p1"])
    story.happens("proxy_claimed", name="p1", lease=1, session=1)  # 8
    story.ends("claim p1", claimed=True, name="p1")
    held = {"claimed": False, "name": "p1", "reason": "held"}
    story.reads("lost claim", 2, "claim", held, lease=2, principals=["p1.example.com"])
    story.reads("look", 2, "is_claimed", {"claimed": True, "name": "p1"}, principals=["p1"])
    story.begins("claim p2", 2, "claim", lease=2, principals=["p2.example.com", "p2"])
    story.happens("proxy_claimed", name="p2", lease=2, session=2)  # 9
    story.ends("claim p2", claimed=True, name="p2")
    story.begins("wait", 1, "acquire")
    rows_of = {"of": "sessions", "base": 9, "cursor": None, "total": 2}
    waiting = [{"session": 1, "waiting": 1, "leases": 1}, {"session": 2, "waiting": 0, "leases": 1}]
    story.reads("who waits", 0, "snapshot", {**rows_of, "rows": waiting}, of="sessions")
    story.begins("release p2", 2, "release", lease=2)
    story.happens("lease_released", lease=2, session=2, name="p2", cause="asked")  # 10
    story.ends("release p2", released=True)
    story.happens("lease_granted", lease=3, session=1, reason="need")  # 11
    story.ends("wait", lease=3)
    story.reads("try behind", 2, "try_acquire", {"lease": None})
    story.begins("claim p2 again", 1, "claim", lease=3, principals=["p2"])
    story.happens("proxy_claimed", name="p2", lease=3, session=1)  # 12
    story.ends("claim p2 again", claimed=True, name="p2")
    counts = {"tracked": 2, "desired": 2, "claimed": 2, "inflight": 0, "sessions": 2}
    story.reads("status", 0, "status", {**counts, "last_lease": 3, "epoch": 1})
    story.happens("daemon_started", epoch=2, server="1", pid=9)  # 13
    leases = [{"lease": 1, "session": 1, "name": "p1"}, {"lease": 3, "session": 1, "name": "p2"}]
    rows_of = {"of": "leases", "base": 13, "cursor": None, "total": 2}
    story.reads("who holds", 0, "snapshot", {**rows_of, "rows": leases}, of="leases")
    story.begins("release p1", 1, "release", lease=1)
    story.happens("lease_released", lease=1, session=1, name="p1", cause="asked")  # 14
    story.ends("release p1", released=True)
    story.reads("release again", 1, "release", {"released": False}, lease=1)
    story.happens("proxy_expired", name="p1", group="", generation=1)  # 15
    story.begins("adopt", 2, "adopt", principals=["p9.example.com"])
    story.happens("lease_granted", lease=4, session=2, reason="adopt")  # 16
    story.happens("proxy_claimed", name="p9", lease=4, session=2)  # 17
    story.ends("adopt", lease=4, name="p9")
    story.reads("not mine", 1, "release", {"error": "not_owner", "message": ""}, lease=4)
    story.begins("close 2", 2, "close")
    story.happens("lease_released", lease=4, session=2, name="p9", cause="closed")  # 18
    story.happens("session_ended", session=2, reason="closed", name="", pid=8)  # 19
    story.ends("close 2")
    story.begins("count", 1, "set_connection_count", count=1)
    story.happens("connection_count", count=1, before=0)  # 20
    story.ends("count")
    story.reads("last look", 1, "is_claimed", {"claimed": False, "name": "p1"}, principals=["p1"])
    return story
