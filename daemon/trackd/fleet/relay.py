"""The relay: what `trackd run` runs in place of a tracker on a host of a fleet.

Agents reach it as they reach the daemon of one host. The kernel says who they are. Their requests
go to the leader as they came, with who asks; its replies come back as it wrote them. The relay
answers `hello` itself, from what the leader has told it. What has no reply yet is kept, and sent
again to the next leader: token, number and `done` of the protocol make that harmless.

It watches the processes that ask, tells the leader which have ended, and shows each second that the
host lives. It publishes the leader's events on this host, and holds gossip back that the leader
knows already.

Nothing of it is stored. A relay that is killed and comes back knows nothing, and needs nothing: the
leader tells it which processes of this host have sessions.

With `on_partition = "close"` it ends all sessions of its host before the leader does, when it
cannot reach one (`trackd.fleet.contact`). Then it answers in place of the leader until that has
ended them, too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import pykka
import zmq

from trackd.actors.inbox import Envelope
from trackd.actors.mailbox import MailboxFailed, RouterMailbox
from trackd.actors.messages import (
    Audience,
    Bind,
    Ping,
    ProcessExited,
    Publish,
    Recover,
    Reload,
    ReloadOutcome,
    Serve,
    WatchProcess,
)
from trackd.actors.supervised import OnEnd, SupervisedActor, refuse_message, send
from trackd.config.settings import Config, ConfigError
from trackd.fleet import contact
from trackd.fleet.contact import Contact
from trackd.fleet.damping import Damper, Due
from trackd.fleet.hop import (
    MOST_EXITED,
    Answer,
    Asker,
    Exited,
    Heard,
    Here,
    Hop,
    HopError,
    Leads,
    Moved,
    Said,
    decode_answer,
    encode,
    encode_word,
)
from trackd.fleet.keys import PUBLIC_SUFFIX, KeyPair, read_public, read_secret
from trackd.fleet.pending import WINDOW, Pending, Requests
from trackd.fleet.pinned import PinnedConnection
from trackd.host.logs import fields
from trackd.host.processes import command_of, start_time
from trackd.host.roles import Roles
from trackd.operations.call import Call
from trackd.operations.operation import PROBE
from trackd.sessions.identity import Peer, Process
from trackd_client.core.limited_log import LimitedLog
from trackd_client.errors import CUT_OFF, Code
from trackd_client.wire.checks import is_seconds
from trackd_client.wire.clock import boot_id, boottime
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import REPLY, REQUEST, TOKEN_BYTES, error_body
from trackd_client.wire.protocol import encode as encode_message

log = logging.getLogger("trackd.fleet")

#: Requests of agents that are read before connections of candidates are looked at.
PART: Final = 32
#: Seconds between two signs of life.
BEAT: Final = 1.0
#: Seconds after which a leader that says nothing leads no more, as far as this host can tell. Then
#: one of an earlier term is listened to again: etcd may have been restored from a backup.
_SILENCE: Final = 10.0
#: Seconds without a leader after which who only looks is told so. Changes wait for the next one.
_PATIENCE: Final = 10.0
#: Seconds after which a request that an agent repeats goes to the same leader once more.
_AGAIN: Final = 1.0
#: Connections of agents whose processes are remembered.
_MOST_ROUTES: Final = 16_384


@dataclass(frozen=True, slots=True)
class FromAgent:
    """To the relay: a request of an agent, decoded and as it came."""

    call: Call
    frame: bytes


class Turn:
    """To the relay: connections to candidates have something, or it is time for a beat."""


class RelayMailbox(RouterMailbox):
    """The inbox: a ROUTER for the agents, and a poller that also has the candidates' connections.

    Attributes:
        poller: for the connections.
        wake_at: when `get` returns a `Turn` at the latest, in seconds of time.monotonic.
        takes_more: whether requests of agents are read just now.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], max_frame: int) -> None:
        super().__init__(context, max_frame)
        self.poller = zmq.Poller()
        self.poller.register(self._router, zmq.POLLIN)
        self.wake_at = 0.0
        self.takes_more = True

    def get(self) -> Envelope[Any]:
        """Return the next message; send the replies before waiting for it."""
        while True:
            if self._ready:
                return self._ready.popleft()
            if self._local:
                return self._local.popleft()
            try:
                self.flush()
                self._wait()
            except Exception as error:  # noqa: BLE001 - as in RouterMailbox
                return Envelope(MailboxFailed(error))

    def _wait(self) -> None:
        wait = max(0.0, self.wake_at - time.monotonic())
        self.poller.modify(self._router, zmq.POLLIN if self.takes_more else 0)
        found = dict(self.poller.poll(int(wait * 1000) + 1))
        if found.pop(self._router, None):
            for _ in range(PART):
                try:
                    self._receive(zmq.DONTWAIT)
                except zmq.Again:
                    break
        if found or time.monotonic() >= self.wake_at:
            self._ready.append(Envelope(Turn()))

    def _hand_over(
        self, route: bytes, peer: Peer | None, frame: zmq.Frame, problem: ProtocolError | None
    ) -> None:
        call = self._read_call(route, peer, frame, problem)
        if call is not None:
            self._ready.append(Envelope(FromAgent(call, frame.bytes), call))  # type: ignore[arg-type] # as in RouterMailbox


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that may lead: where it is, and its public keys."""

    name: str
    endpoint: str
    keys: tuple[str, ...]


def candidates_of(config: Config) -> tuple[KeyPair, list[Candidate]]:
    """Return the keys of this host, and the candidates, from the settings and the files of keys.

    Raises:
        ConfigError, KeyFileError: something is missing or cannot be used.
    """
    wanted = {
        "key_file": "the secret key of this host; `trackd keys make NAME` makes one",
        "leaders_dir": "the directory of the leaders' public keys, NAME.pub",
    }
    problems = [
        f"[fleet] {name} is missing: {what}"
        for name, what in wanted.items()
        if not getattr(config, name)
    ]
    if config.on_partition == "close" and not config.state_dir:
        problems.append(
            '[fleet] on_partition = "close" needs a state_dir: a relay that starts again reads '
            "there since when the leader has not heard of this host"
        )
    if problems:
        raise ConfigError(problems)
    found = []
    for leader in config.leaders:
        name, _, address = leader.partition("=")
        keys = read_public(Path(config.leaders_dir) / f"{name}{PUBLIC_SUFFIX}")
        found.append(Candidate(name, f"tcp://{address}", keys))
    return read_secret(Path(config.key_file)), found


class RelayActor(SupervisedActor):
    """The actor."""

    def __init__(
        self,
        on_end: OnEnd,
        context: zmq.Context[zmq.Socket[bytes]],
        config: Config,
        own: KeyPair,
        candidates: list[Candidate],
        *,
        audience: Audience,
        ask_reload: Callable[[], None],
    ) -> None:
        """Set up the relay.

        Args:
            on_end: called at its end.
            context: the process's ZeroMQ context.
            config: the settings.
            own: the keys of this host.
            candidates: the hosts that may lead.
            audience: whether somebody listens to events.
            ask_reload: asks the overseer to read the settings again.
        """
        self._request_reload = ask_reload
        self._reloads_asked = self._reloads = 0
        self._reload: dict[str, Any] | None = None
        self._mailbox = RelayMailbox(context, config.max_frame)
        super().__init__(on_end, self._mailbox)
        self._config = config
        self._roles = Roles(config.admin_users, config.admin_groups)
        self._audience = audience
        self._listens = False  # as the leader was told last
        self._limited = LimitedLog(log)
        self._boot = boot_id()
        self._contact: Contact | None = None
        if config.state_dir:
            file = Path(config.state_dir) / contact.NAME
            if config.on_partition == "close":
                self._contact = Contact(file, self._boot)
            else:
                file.unlink(missing_ok=True)  # nobody goes on counting
        self._links = {
            each.name: PinnedConnection(
                context, self._mailbox.poller, each.endpoint, each.keys, own
            )
            for each in candidates
        }
        self._requests = Requests(secrets.randbits(40) << 20 | 1)
        self._askers: dict[bytes, Asker] = {}
        self._watched: set[Process] = set()
        self._ended: list[tuple[int, int]] = []  # of which the leader was not told yet
        self._watcher: pykka.ActorRef[Any] | None = None
        self._publisher: pykka.ActorRef[Any] | None = None
        self._events = ""
        # What the leader has told.
        self._leader: str | None = None  # the name of the candidate, once it has agreed with us
        self._term = 0
        self._heard = -_SILENCE  # when it was heard of last, by CLOCK_BOOTTIME
        self._since = boottime()  # since when there is a leader, or none
        self._about: dict[str, Any] | None = None
        self._revision = 0
        self._told = 0  # up to which revision its events were published here
        self._offset: float | None = None  # of the fleet clock, as agents were told first
        self._damper = Damper(config.proxy_expiry, config.max_ttl)

    # -- messages: all of this runs in the actor's thread -----------------------------

    def on_receive(self, message: Any) -> Any:
        """Handle one message."""
        if isinstance(message, FromAgent):
            self._note_listeners()
            reply = self._answer(message.call, message.frame)
            self._mailbox.takes_more = self._requests.in_flight < WINDOW
            return reply
        if isinstance(message, Turn):
            self._turn()
        elif isinstance(message, ProcessExited):
            self._exited([message.process])
        elif isinstance(message, MailboxFailed):
            raise message.error
        elif isinstance(message, Reload):
            self._config, self._roles = message.config, message.roles
            self._mailbox.limit_frames(message.config.max_frame)
            self._askers.clear()
            self._reloaded(message.outcome)
        elif isinstance(message, ReloadOutcome):
            self._reloaded(message)
        elif isinstance(message, Serve):
            self._watcher, self._publisher = message.watcher, message.publisher
            self._events = message.events
            self._mailbox.bind(message.endpoint, message.descriptor)
        elif isinstance(message, Bind):
            self._mailbox.bind(message.endpoint, message.descriptor)
        elif not isinstance(message, Ping | Recover):
            refuse_message(self, message)
        return None

    def on_stop(self) -> None:
        """Send the last replies, and end the connections."""
        try:
            self._mailbox.flush()
            for link in self._links.values():
                link.close()
            if self._contact is not None:
                self._contact.close()
        finally:
            super().on_stop()

    def _reloaded(self, outcome: ReloadOutcome) -> None:
        self._reloads += 1
        self._reload = {"wall": time.time(), **dataclasses.asdict(outcome)}

    # -- requests of agents -------------------------------------------------------------

    def _answer(self, call: Call, frame: bytes) -> bytes | None:
        """Answer a request if that needs no leader, else send it on."""
        try:
            if call.problem is not None:
                raise call.problem
            op = call.body.get("op")
            if op == PROBE and call.peer is not None and call.peer.pid == os.getpid():
                return self._reply(call.seq, {"status": self._status()})
            if call.peer is None:
                raise ProtocolError(
                    Code.PERMISSION_DENIED, "the kernel does not say which process sent the request"
                )
            if op == "hello":
                return self._reply(call.seq, self._hello())
            if op == "reload":
                return self._reply(call.seq, self._ask_reload(call.peer))
            if op == "fleet" and self._leader is None:
                raise ProtocolError(Code.UNAVAILABLE, self._status())
            return self._forward(call, call.peer, frame)
        except ProtocolError as error:
            return self._refusal(call.seq, error)

    def _refusal(self, seq: int, error: ProtocolError) -> bytes:
        body = error_body(seq, self._revision, error.code, str(error))
        if error.code == Code.UNAVAILABLE:
            body["retry_after"] = BEAT
        return encode_message(REPLY, {**body, **error.fields})

    def _reply(self, seq: int, found: Mapping[str, Any]) -> bytes:
        return encode_message(REPLY, {"seq": seq, "revision": self._revision, **found})

    def _hello(self) -> dict[str, Any]:
        """Return what the leader has told of itself, with the clock and the boot of this host."""
        if self._about is None or self._offset is None:
            raise ProtocolError(
                Code.UNAVAILABLE, f"the fleet has not been reached yet: {self._status()}"
            )
        about = self._about
        most = min(self._config.max_frame, about["max_frame"])
        return {
            **{name: about[name] for name in about if name not in _FOR_RELAYS},
            "limits": {**about["limits"], "max_frame": most},
            "boot_id": self._boot,
            "clock": boottime() + self._offset,
            "events": self._events,
            "fleet": {
                "host": about["host"],
                "leader": self._leader,
                "term": self._term,
                "seconds": boottime() - self._since,
            },
        }

    def _ask_reload(self, peer: Peer) -> dict[str, Any]:
        """Ask for a reload of this host's settings; those of the leader are its own host's."""
        if not self._roles.is_admin(peer):
            raise ProtocolError(Code.PERMISSION_DENIED, "reload needs the role admin")
        self._reloads_asked = max(self._reloads_asked, self._reloads) + 1
        log.info("admin act", extra=fields(operation="reload", uid=peer.uid, pid=peer.pid))
        self._request_reload()
        return {"reloads": self._reloads_asked}

    def _forward(self, call: Call, peer: Peer, frame: bytes) -> bytes | None:
        """Keep a request and send it to the leader, without gossip that it knows."""
        op, token = call.body.get("op"), call.body.get("token")
        has_token = isinstance(token, bytes) and len(token) == TOKEN_BYTES
        if self._is_cut_off:
            return self._answer_cut_off(call.seq, op, in_session=has_token and op != "open")
        if not has_token:
            self._check_reached()
        self._check_size(frame)
        key = (peer.uid, token if isinstance(token, bytes) and has_token else call.route, call.seq)
        known = self._requests.find(key)
        if known is not None:
            known.route = call.route
            self._send_again(known)
            return None
        if not self._requests.has_room(peer.uid):
            raise ProtocolError(
                Code.UNAVAILABLE,
                f"too many requests wait for the leader of the fleet: {self._status()}",
            )
        due = None
        if op == "track_expected" and has_token:
            due, frame = self._damp(call, frame)
        deadline = call.body.get("deadline")
        until = None
        if is_seconds(deadline) and self._offset is not None:
            until = deadline - self._offset
        asker = self._asker(call.route, peer)
        self._send(
            self._requests.add(
                key, op, call.route, asker, until, frame, due, only_looks=not has_token
            )
        )
        return None

    def _damp(self, call: Call, frame: bytes) -> tuple[Due | None, bytes]:
        """Leave out of gossip what the leader knows.

        Returns:
            What the leader is told, and the frame for it; None when all of it is passed on.
        """
        proxies = call.body.get("proxies")
        if not self._leader or type(proxies) is not list:
            return None, frame
        try:
            due = self._damper.due(proxies, boottime())
        except ProtocolError:
            return None, frame  # the leader says what is wrong
        if len(due.rows) < len(proxies):
            frame = encode_message(REQUEST, {**call.body, "proxies": due.rows})
        due.rows = []  # they are in the frame
        return due, frame

    def _check_size(self, frame: bytes) -> None:
        """Check that the leader takes a message: it would hang up on this host otherwise."""
        if self._about is not None and len(frame) > self._about["max_frame"]:
            raise ProtocolError(
                Code.LIMIT_EXCEEDED,
                f"the message has {len(frame)} bytes; {self._about['max_frame']} are allowed",
            )

    def _check_reached(self) -> None:
        """Check for who only looks that there is a leader, or was one just now."""
        if self._leader is None and boottime() > self._since + _PATIENCE:
            raise ProtocolError(Code.UNAVAILABLE, f"the fleet cannot be reached: {self._status()}")

    # -- a host that is cut off, with on_partition = "close" ------------------------------

    @property
    def _is_cut_off(self) -> bool:
        return self._contact is not None and self._contact.ended is not None

    def _answer_cut_off(self, seq: int, op: object, *, in_session: bool) -> bytes:
        """Answer a request while this host is cut off: all sessions have ended."""
        if not in_session:
            error = ProtocolError(
                Code.UNAVAILABLE, f"this host is cut off: {self._status()}", reason=CUT_OFF
            )
        elif op == "close":
            return self._reply(seq, {})
        else:
            error = ProtocolError(
                Code.SESSION_ENDED,
                "the session has ended: its host is cut off, and on_partition is close",
                reason=CUT_OFF,
            )
        return self._refusal(seq, error)

    def _end_sessions_in_time(self) -> None:
        """End all sessions of this host when the leader may soon give their leases to others."""
        now = boottime()
        if self._contact is None or self._contact.ends is None or now < self._contact.ends:
            return
        self._contact.end(now)
        log.warning("cut off; all sessions of this host end", extra=fields(now=self._status()))
        if self._leader is not None:
            self._lose_leader("it has not answered in time")
        for link in self._links.values():
            link.restart()  # what was not sent yet is not done later
        for request in [*self._requests]:
            self._requests.take(request.number)
            # A session that was being opened may be open by now, and ends with the others.
            reply = self._answer_cut_off(request.seq, request.op, in_session=not request.only_looks)
            self._mailbox.send(request.route, reply)

    def _note_heard(self, sent: float, host_ttl: float | None = None) -> None:
        """Note that the leader has heard of this host."""
        if self._contact is None or not sent:
            return
        try:
            if self._contact.take(sent, host_ttl):
                log.warning("no longer cut off: the leader has ended the sessions, too")
        except OSError as error:
            self._limited.warning("contact", "the next relay will not know this", error=error)

    def _asker(self, route: bytes, peer: Peer) -> Asker:
        """Return who asks over a connection; looked up once."""
        found = self._askers.get(route)
        if found is None:
            if len(self._askers) >= _MOST_ROUTES:
                self._askers.clear()
            admin = self._roles.is_admin(peer)
            try:
                start = start_time(peer.pid) if peer.pid else None
            except OSError as error:  # without descriptors, say: next time
                self._limited.warning("process", "cannot look at a process for now", error=error)
                return Asker(*peer[:3], None, "", admin, None)
            command = command_of(peer.pid) if peer.pid else ""
            found = self._askers[route] = Asker(*peer[:3], start, command, admin, None)
            if start is not None:
                self._watch(Process(peer.pid, start))
        return found

    def _send(self, request: Pending) -> None:
        """Send a request to the leader; when there is no room it is sent again later."""
        now = boottime()
        remaining = None if request.deadline is None else request.deadline - now
        asker = request.asker._replace(remaining=remaining)
        if self._tell(encode(Hop(request.number, asker, request.frame))):
            self._requests.note_sent(request, now)

    def _send_again(self, request: Pending) -> None:
        """Send a request that may have got lost, or whose reply may; or that found no room."""
        if request.sent is None and request.op == "track_expected":
            self._damper.clear()  # later mentions may have overtaken this one
        if request.sent is None or boottime() > request.sent + _AGAIN:
            self._send(request)

    def _tell(self, frame: bytes) -> bool:
        link = self._links[self._leader] if self._leader else None
        if link is None:
            return False
        try:
            link.socket.send(frame, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    # -- processes of this host ---------------------------------------------------------

    def _watch(self, process: Process) -> None:
        if process not in self._watched and self._watcher is not None:
            self._watched.add(process)
            send(self._watcher, WatchProcess(process))

    def _exited(self, processes: list[Process]) -> None:
        """Tell the leader that processes have ended; without one it will ask."""
        self._watched.difference_update(processes)
        self._ended += [(each.pid, each.start) for each in processes]
        while self._ended and self._tell(encode_word(Exited(self._ended[:MOST_EXITED]))):
            del self._ended[:MOST_EXITED]

    # -- candidates ---------------------------------------------------------------------

    def _turn(self) -> None:
        """Take in what candidates say, and show once in a while that this host lives."""
        for name, link in self._links.items():
            was = link.connected
            link.step()
            if name == self._leader and was and not link.connected:
                self._lose_leader("its connection has ended")
            if link.connected and not was:
                self._show(name, link)
            self._listen(name, link)
        self._end_sessions_in_time()
        now = time.monotonic()
        if now >= self._mailbox.wake_at:
            self._mailbox.wake_at = now + BEAT
            self._beat()
        steps = [link.next_step for link in self._links.values() if link.next_step is not None]
        if self._contact is not None and self._contact.ends is not None:
            steps.append(max(0.0, self._contact.ends - boottime()))
        self._mailbox.wake_at = min([self._mailbox.wake_at, *(now + step for step in steps)])

    def _beat(self) -> None:
        now = boottime()
        self._note_listeners()
        self._listens = self._audience.listening
        if self._leader and now > self._heard + _SILENCE:
            self._lose_leader("it is silent")
        for name, link in self._links.items():
            if link.connected:
                self._show(name, link)
        for request in self._requests.take_late(now):
            if request.due is not None:
                self._damper.settle(request.due, now, taken=False)
        try:
            self._check_reached()
        except ProtocolError as error:
            for request in [each for each in self._requests if each.only_looks]:
                self._requests.take(request.number)
                self._mailbox.send(request.route, self._refusal(request.seq, error))
        if self._leader:
            self._exited([])
            for request in self._requests:
                if request.sent is None:
                    self._send_again(request)

    def _note_listeners(self) -> None:
        """Ask for events as soon as somebody subscribes.

        It comes before the requests by which the subscriber learns where to begin, over the same
        connection: no event between is lost.
        """
        if self._audience.listening and not self._listens:
            self._listens = True
            self._told = self._revision  # who subscribes begins there, or later
            if self._leader:
                self._show(self._leader, self._links[self._leader])

    def _show(self, name: str, link: PinnedConnection) -> None:
        """Show a candidate that this host lives."""
        agreed = self._term if name == self._leader else 0
        with contextlib.suppress(zmq.Again):  # it has 1,000 of our messages unread
            word = Here(self._boot, agreed, self._listens, boottime(), self._is_cut_off)
            if self._listens and self._about is not None:
                word = word._replace(tracker_id=self._about["tracker_id"], revision=self._told)
            link.socket.send(encode_word(word), zmq.DONTWAIT)

    def _listen(self, name: str, link: PinnedConnection) -> None:
        """Take in all that a candidate has said."""
        while True:
            try:
                data = link.socket.recv(zmq.DONTWAIT)
            except zmq.Again:
                return
            try:
                said = decode_answer(data)
            except HopError as error:
                self._limited.warning("said", "%s says what a leader does not", name, error=error)
                continue
            if said is not None:
                self._take(name, said)

    def _take(self, name: str, said: Said) -> None:
        now = boottime()
        if isinstance(said, Leads):
            silent = now > self._heard + _SILENCE
            if said.term >= self._term or silent:
                self._follow(name, said)
            return
        if name != self._leader or said.term != self._term:
            return  # of an earlier term, or one that has not told us yet that it leads
        self._heard = now
        if isinstance(said, Answer):
            self._pass_on(said)
        elif isinstance(said, Heard):
            self._note_heard(said.sent)
            self._revision = max(self._revision, said.revision)
        elif isinstance(said, Moved):
            if said.names:
                self._damper.forget(said.names)
            else:
                self._damper.clear()
        else:
            self._revision = max(self._revision, said.revision)
            self._publish(said.epoch, said.tracker_id, said.revision, said.events)

    def _follow(self, name: str, said: Leads) -> None:
        """Follow a leader from now on: what has no reply goes to it, and agents hear of it."""
        about, now = said.about, boottime()
        try:
            cluster, tracker_id = about["cluster"], about["tracker_id"]
            clock, revision = float(about["clock"]), int(about["revision"])
            processes = [Process(int(pid), int(start)) for pid, start in about["processes"]]
            damper = (float(about["proxy_expiry"]), float(about["max_ttl"]))
            host_ttl = float(about.get("host_ttl", math.inf))  # an older leader does not say it
            epoch, limits = int(about["epoch"]), about["limits"]
            max_name, about["max_frame"] = int(limits["max_name"]), int(about["max_frame"])
        except (LookupError, TypeError, ValueError) as error:
            self._limited.warning("said", "%s does not say what it leads", name, error=error)
            return
        if cluster != self._config.cluster_name:
            self._limited.warning(
                "cluster",
                "%s leads the cluster %r, and this host serves %r; check [fleet] leaders",
                name,
                cluster,
                self._config.cluster_name,
            )
            return
        known = self._about
        same_state = known is not None and known["tracker_id"] == tracker_id
        if not same_state:
            self._revision = self._told = 0
        self._damper = Damper(*damper, max_name)  # nobody has said what has moved since
        if (self._leader, self._term) != (name, said.term):
            log.info("leader found", extra=fields(leader=name, term=said.term))
            self._requests.take_back()
            self._since = now
        self._leader, self._term, self._about, self._heard = name, said.term, about, now
        self._note_heard(said.sent, host_ttl)
        if not (self._listens and same_state):  # else the events follow that were missed
            self._revision = self._told = max(self._revision, revision)
        if self._offset is None:
            self._offset = clock - now
        self._ended.clear()  # it has just said whom it knows
        # Before requests, which would meet what the dead hold.
        self._exited([each for each in processes if _has_ended(each)])
        for process in processes:
            # Again, if it is watched already: it may have ended while nobody listened.
            self._watched.discard(process)
            self._watch(process)
        for request in [*self._requests]:
            try:
                self._check_size(request.frame)
            except ProtocolError as error:
                self._requests.take(request.number)
                self._mailbox.send(request.route, self._refusal(request.seq, error))
            else:
                self._send_again(request)
        self._publish(epoch, tracker_id, self._told, ())

    def _lose_leader(self, why: str) -> None:
        log.warning("no leader", extra=fields(leader=self._leader, reason=why))
        self._leader, self._since = None, boottime()
        self._requests.take_back()
        self._mailbox.takes_more = True

    def _pass_on(self, answer: Answer) -> None:
        """Pass a reply on to the agent that waits for it."""
        request = self._requests.take(answer.number)
        self._mailbox.takes_more = self._requests.in_flight < WINDOW
        if request is None:
            return  # nobody waits for it
        self._revision = max(self._revision, _revision_of(answer.frame))
        if request.due is not None:
            taken = not _is_error(answer.frame)
            self._damper.settle(request.due, boottime(), taken=taken)
        if not answer.frame:
            return  # the leader has nothing to say
        frame = self._with_facts(answer.frame) if request.op == "status" else answer.frame
        self._mailbox.send(request.route, frame)

    def _with_facts(self, frame: bytes) -> bytes:
        """Return a reply to `status` with what is so on this host, and not on the leader's."""
        try:
            _, _, body = msgpack.unpackb(frame)
            if "error" in body:
                return frame
            facts = {
                "events": self._events,
                "http": self._config.http,
                "reloads": self._reloads,
                "reload": self._reload,
            }
            return encode_message(REPLY, {**body, **facts})
        except (ValueError, TypeError, msgpack.UnpackException):
            return frame

    def _publish(
        self, epoch: int, tracker_id: str, revision: int, events: list[bytes] | tuple[()]
    ) -> None:
        """Publish events on this host."""
        self._told = max(self._told, revision)
        if self._publisher is not None and self._audience.listening:
            send(self._publisher, Publish(epoch, tracker_id, revision, events))

    def _status(self) -> str:
        """Return a sentence on the leader, for people."""
        seconds = boottime() - self._since
        if self._leader is None:
            return f"no leader for {seconds:.0f} s, {len(self._requests)} requests wait"
        if self._is_cut_off:
            return f"leader {self._leader}, term {self._term}, has not ended the sessions yet"
        return f"leader {self._leader}, term {self._term}, {len(self._requests)} requests wait"


#: What a leader tells relays, and not agents.
_FOR_RELAYS: Final = frozenset(
    {"revision", "proxy_expiry", "max_ttl", "max_frame", "host_ttl", "host", "processes"}
)


def _has_ended(process: Process) -> bool:
    """Return whether a process of this host has ended; False when nobody can tell just now."""
    try:
        return start_time(process.pid) != process.start
    except OSError:
        return False


def _revision_of(frame: bytes) -> int:
    """Return the revision in a reply, which stands near its beginning; 0 without one."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(frame))
    unpacker.feed(frame)
    try:
        unpacker.read_array_header()
        unpacker.skip()
        unpacker.skip()
        for _ in range(unpacker.read_map_header()):
            if unpacker.unpack() == "revision":
                revision = unpacker.unpack()
                return revision if type(revision) is int else 0
            unpacker.skip()
    except (ValueError, TypeError, msgpack.UnpackException):
        pass
    return 0


def _is_error(frame: bytes) -> bool:
    """Return whether a small reply is an error."""
    try:
        return "error" in msgpack.unpackb(frame)[2]
    except (ValueError, TypeError, LookupError, msgpack.UnpackException):
        return True


def start(
    on_end: OnEnd,
    context: zmq.Context[zmq.Socket[bytes]],
    config: Config,
    audience: Audience,
    ask_reload: Callable[[], None],
) -> pykka.ActorRef[RelayActor]:
    """Start the relay of this host.

    Raises:
        StartError: a key cannot be read, or a setting is missing.
    """
    own, candidates = candidates_of(config)
    return RelayActor.start(
        on_end, context, config, own, candidates, audience=audience, ask_reload=ask_reload
    )
