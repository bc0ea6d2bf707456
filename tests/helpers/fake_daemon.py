"""A daemon of a few lines, for the stream of events: its state, its history, what it publishes.

It answers what a `Stream` asks, as docs/protocol.md says it, and remembers the state of every
revision, so that whatever a stream tells can be compared with what was so.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from typing import Any

import msgpack

from trackd_client.core.event import Event
from trackd_client.core.mirror import Mirror
from trackd_client.core.stream import Ask, Listen, Pause, Steps, Stream, Subscribe
from trackd_client.wire.requests import MAX_ROWS

Facts = dict[str, dict[Any, tuple[Any, ...]]]


class World:
    """The daemon.

    Attributes:
        published: the frames that the subscriber has not read.
        history: most events that `log` tells.
        facts: what events tell of the state, by tracker id and revision.
        asked: the operations that were asked for.
        minor: its minor version of the protocol.
    """

    def __init__(self, *, history: int = 10_000, publishes: bool = True, minor: int = 1) -> None:
        self.minor = minor
        self.history = history
        self.publishes = publishes
        self.published: deque[bytes] = deque()
        self.facts: dict[tuple[str, int], Facts] = {}
        self.asked: list[str] = []
        self._states = 0
        self.begin()

    # -- what happens -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin with an empty state, as after its loss."""
        self._states += 1
        self.tracker_id = f"state {self._states}"
        self.epoch = 0
        self.revision = 0
        self.log: list[list[Any]] = []
        self.proxies: dict[str, tuple[str, int]] = {}
        self.sessions: dict[int, int] = {}  # pids
        self.leases: dict[int, int] = {}  # sessions
        self.claims: dict[str, int] = {}  # leases
        self._numbers = 0
        self._walks: dict[int, tuple[int, list[Any]]] = {}
        self._note()
        self.restart()

    def restart(self) -> None:
        """Start again, with the same state."""
        self.epoch += 1
        self._walks.clear()
        self.change("daemon_started", epoch=self.epoch, server="1", pid=1)
        self.published.clear()  # nobody is subscribed yet
        self.greet()

    def greet(self) -> None:
        """Publish what is published when somebody subscribes."""
        self.publish([], tracker_id="", epoch=0, revision=0)

    def publish(self, events: list[Any], **fields: Any) -> None:
        """Publish a message."""
        body = {"epoch": self.epoch, "tracker_id": self.tracker_id, "revision": self.revision}
        self.published.append(msgpack.packb([1, 3, {**body, "events": events, **fields}]))

    def change(self, kind: str, **fields: Any) -> None:
        """Note a change that has been made, and publish it."""
        self.revision += 1
        event = [self.revision, float(self.revision), 1e9, kind, fields]
        self.log.append(event)
        self._note()
        self.publish([event])

    def open(self) -> int:
        self._numbers += 1
        self.sessions[self._numbers] = 1000 + self._numbers
        self.change(
            "session_opened",
            session=self._numbers,
            uid=0,
            pid=1000 + self._numbers,
            name="n",
            command="c",
        )
        return self._numbers

    def end(self, session: int) -> None:
        for lease in [lease for lease, holder in self.leases.items() if holder == session]:
            self.release(lease, cause="closed")
        pid = self.sessions.pop(session)
        self.change("session_ended", session=session, reason="closed", name="n", pid=pid)

    def grant(self, session: int) -> int:
        self._numbers += 1
        self.leases[self._numbers] = session
        self.change("lease_granted", lease=self._numbers, session=session, reason="need")
        return self._numbers

    def claim(self, lease: int, name: str) -> None:
        if name not in self.claims and lease not in self.claims.values():
            self.claims[name] = lease
            self.change("proxy_claimed", name=name, lease=lease, session=self.leases[lease])

    def release(self, lease: int, cause: str = "asked") -> None:
        name = next((name for name, holder in self.claims.items() if holder == lease), None)
        if name is not None:
            del self.claims[name]
        session = self.leases.pop(lease)
        self.change("lease_released", lease=lease, session=session, name=name, cause=cause)

    def track(self, name: str, group: str, generation: int) -> None:
        before = self.proxies.get(name)
        if before == (group, generation):
            return
        self.proxies[name] = (group, generation)
        place = {"name": name, "group": group, "generation": generation, "session": 1}
        if before is None:
            self.change("proxy_tracked", **place)
        else:
            old = {"old_group": before[0], "old_generation": before[1]}
            self.change("proxy_changed", **place, **old)

    def expire(self, name: str) -> None:
        group, generation = self.proxies.pop(name)
        self.change("proxy_expired", name=name, group=group, generation=generation)

    def happen(self, chance: random.Random) -> None:
        """Change something."""
        leases, name = list(self.leases), f"p{chance.randrange(6)}"
        match chance.randrange(8):
            case 0:
                self.open()
            case 1 if self.sessions:
                self.grant(chance.choice(list(self.sessions)))
            case 2 | 3 if leases:
                self.claim(chance.choice(leases), name)
            case 4 if leases:
                self.release(chance.choice(leases))
            case 5 if self.proxies:
                self.expire(chance.choice(list(self.proxies)))
            case 6 if self.sessions and chance.randrange(4) == 0:
                self.end(chance.choice(list(self.sessions)))
            case _:
                self.track(name, chance.choice("ab"), chance.randrange(3))

    # -- what it is asked ------------------------------------------------------------------------

    def answer(self, ask: Ask) -> dict[str, Any] | None:
        """Answer a request of a stream."""
        self.asked.append(ask.op)
        fields: Mapping[str, Any] = ask.fields
        reply: dict[str, Any] = {"revision": self.revision}
        if self.minor or ask.op == "hello":
            reply |= {"epoch": self.epoch, "tracker_id": self.tracker_id}
        match ask.op:
            case "hello":
                endpoint = "ipc:///x.events" if self.publishes else ""
                return {**reply, "clock": 0.0, "events": endpoint}
            case "log":
                kept = self.log[-self.history :] if self.history else []
                wanted = [event for event in kept if event[0] > fields.get("after", 0)]
                return {
                    **reply,
                    "events": msgpack.unpackb(
                        msgpack.packb(wanted[: fields.get("limit", MAX_ROWS)])
                    ),
                    "oldest": kept[0][0] if kept else None,
                    "newest": self.revision,
                    "history": self.history,
                }
            case "snapshot":
                page = self._page(fields)
                return page if page is None else {**reply, **page}
        raise AssertionError(ask)

    def _page(self, fields: Mapping[str, Any]) -> dict[str, Any] | None:
        of, cursor = fields["of"], fields.get("cursor")
        rows = self._rows()[of]
        if cursor is None:
            self._numbers += 1
            cursor = [self._numbers, 0]
            self._walks[self._numbers] = (self.revision, list(rows))
        walk, offset = cursor
        if walk not in self._walks:
            return None
        base, keys = self._walks[walk]
        end = offset + fields.get("limit", MAX_ROWS)
        return {
            "base": base,
            "total": len(keys),
            "rows": [dict(rows[key]) for key in keys[offset:end] if key in rows],
            "cursor": [walk, end] if end < len(keys) else None,
        }

    def _rows(self) -> dict[str, dict[Any, dict[str, Any]]]:
        places, claimed = self.proxies, {lease: name for name, lease in self.claims.items()}
        proxies = {}
        for name in sorted({*places, *self.claims}):
            group, generation = places.get(name, (None, None))
            lease = self.claims.get(name)
            session = None if lease is None else self.leases[lease]
            largest = max((g for at, g in places.values() if at == group), default=None)
            proxies[name] = {
                "name": name,
                "group": group,
                "generation": generation,
                "tracked": name in places,
                "largest": largest,
                "desired": name in places and generation == largest,
                "lease": lease,
                "session": session,
                "pid": None if session is None else self.sessions[session],
            }
        leases = {
            lease: {
                "lease": lease,
                "session": session,
                "pid": self.sessions[session],
                "name": claimed.get(lease),
            }
            for lease, session in self.leases.items()
        }
        sessions = {}
        for number, pid in self.sessions.items():
            held = [lease for lease, holder in self.leases.items() if holder == number]
            sessions[number] = {
                "session": number,
                "uid": 0,
                "pid": pid,
                "leases": len(held),
                "inflight": sum(lease not in claimed for lease in held),
            }
        return {"proxies": proxies, "leases": leases, "sessions": sessions}

    def _note(self) -> None:
        rows = self._rows()
        self.facts[self.tracker_id, self.revision] = {
            of: {key: _facts(row) for key, row in rows[of].items()} for of in rows
        }


class Watcher:
    """Does the steps of a stream, one at a time, and checks all that it tells.

    Attributes:
        told: the events.
        tracker_id: of the state that they tell of.
        waits: whether the last step was to listen, and nothing came.
    """

    def __init__(self, world: World, *, snapshot: bool = True, page: int = 1000) -> None:
        self.world = world
        self.told: list[Event] = []
        self.waits = False
        self.mirror: Mirror | None = None
        self.tracker_id = ""
        self._greeted_by = ""
        self._steps: Steps = Stream(snapshot=snapshot, page=page, wall=lambda: 0.0).run()
        self._answer: Any = None

    @property
    def kinds(self) -> list[str]:
        """The kinds of the events that were told."""
        return [event.kind for event in self.told]

    def step(self) -> None:
        """Do one step."""
        step = self._steps.send(self._answer)
        self._answer, self.waits = None, False
        match step:
            case Event():
                self._check(step)
                self.told.append(step)
            case Ask():
                self._answer = self.world.answer(step)
                assert self._answer is not None or step.refusable
                if step.op == "hello":
                    self._greeted_by = self.world.tracker_id
            case Subscribe():
                self._answer = bool(step.endpoint)
                if self._answer:
                    self.world.published.clear()
                    self.world.greet()
            case Pause():
                pass
            case Listen():
                if self.world.published and self.world.publishes:
                    self._answer = self.world.published.popleft()
                else:
                    self.waits = True

    def settle(self) -> list[Event]:
        """Go on until nothing more can come; return what was told meanwhile."""
        before = len(self.told)
        silent = 0
        while silent < 4:  # it asks after the first, and waits for what is missing in two more
            told = len(self.told)
            self.step()
            silent = 0 if len(self.told) > told else silent + self.waits
        return self.told[before:]

    def _check(self, event: Event) -> None:
        """Hold what is told to what was so."""
        world, last = self.world, self.told[-1] if self.told else None
        if event.kind == "gap":
            assert event.fields["newest"] == event.revision
            assert last is None or event.fields["after"] == last.revision
            whole = world.history >= len(world.log)
            assert not whole or self.tracker_id != world.tracker_id, "nothing was lost"
            return
        if event.kind == "snapshot":
            assert last is None or last.kind == "gap"
            assert event.revision == event.fields["revision"]
            self.tracker_id = self._greeted_by
            self.mirror = Mirror(event.fields)
        else:
            if last is not None and last.kind != "gap":
                assert event.revision == last.revision + 1
            if self.mirror is None:
                return
            self.mirror.apply(event)
        assert facts_of(self.mirror) == world.facts[self.tracker_id, event.revision]


def facts_of(mirror: Mirror) -> Facts:
    """Return what events tell of the rows of a mirror."""
    snapshot = mirror.snapshot()
    return {
        of: {row[key]: _facts(row) for row in snapshot[of]}
        for of, key in (("proxies", "name"), ("leases", "lease"), ("sessions", "session"))
    }


_TOLD = (
    *("name", "group", "generation", "tracked", "largest", "desired", "lease", "session", "pid"),
    *("uid", "leases", "inflight"),
)


def _facts(row: Mapping[str, Any]) -> tuple[Any, ...]:
    named = "group" in row or "lease" in row  # a session's name is its own
    return tuple(row.get(field) for field in _TOLD if field != "name" or named)
