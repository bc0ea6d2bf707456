"""What operators ask and do, for the synchronous client: `Tracker` has these methods too.

What only looks needs no session, and opens none.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from typing import Any, Literal, overload

import zmq

from trackd_client.core import calls
from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.calls import Call, T
from trackd_client.core.coverage import Wanted, pauses
from trackd_client.core.event import Event
from trackd_client.core.event_sockets import event_endpoint
from trackd_client.core.lease import LeaseT
from trackd_client.core.sockets import check_threads
from trackd_client.core.stream import (
    RETRY_SECONDS,
    Ask,
    History,
    Listen,
    Pause,
    Rows,
    Steps,
    Stream,
    Subscribe,
    read_log,
    read_rows,
)
from trackd_client.errors import TROUBLES, DaemonAbsent, InvalidRequest, NoAnswer, TrackerClosed
from trackd_client.results import (
    ROWS,
    Explanation,
    Fleet,
    LeaseRow,
    ProxyExplanation,
    ProxyRow,
    Result,
    SessionRow,
    Snapshot,
    Status,
)
from trackd_client.sync.connection import Connections
from trackd_client.sync.subscription import Subscription


class Operations(BaseTracker[LeaseT]):
    """The part of a tracker that operators use; docs/protocol.md lists the fields of replies."""

    _connections: Connections

    @abstractmethod
    def _call(self, call: Call[T]) -> T:
        """Make a call and return its result."""

    @abstractmethod
    def _request(self, op: str, fields: Mapping[str, Any], *, in_session: bool = True) -> Any:
        """Make one request and return the fields of its reply."""

    # -- how things stand ------------------------------------------------------------------

    def status(self) -> Status:
        """Return the daemon's counts."""
        return self._call(calls.status())

    def wait_covered(
        self,
        timeout: float | None = None,
        *,
        at_least: int | None = None,
        missing_at_most: int | str = 0,
        allow_none: bool = False,
    ) -> bool:
        """Wait until enough of the wanted tunnels are there, whoever holds them.

        It waits for a daemon that is not there yet, too. Then one look may last as long as the
        `timeout` of the tracker.

        Args:
            timeout: seconds to wait at most, 0 for one look, or None for no limit.
            at_least: enough is when so many desired proxies have a tunnel; None: when at most
                `missing_at_most` are missing.
            missing_at_most: a number of wanted tunnels, or a share of them such as `"10%"`.
            allow_none: whether it is enough when no tunnel is wanted, since no proxy is known.

        Returns:
            Whether enough were there in time.

        Raises:
            BadArgument: an argument is no such number.
            DaemonAbsent, NoAnswer: no daemon answered when the time was up.
            TrackdError: the daemon refuses.
        """
        wanted = Wanted(at_least, missing_at_most, allow_none)
        wanted.check()
        looks = pauses(timeout)
        while True:
            try:
                if wanted.is_enough(self.status()):
                    return True
                pause = next(looks, None)
                if pause is None:
                    return False
            except (DaemonAbsent, NoAnswer):
                pause = next(looks, None)
                if pause is None:
                    raise
            time.sleep(pause)

    @overload
    def explain(self, name: None = None) -> Explanation: ...

    @overload
    def explain(self, name: str) -> ProxyExplanation: ...

    def explain(self, name: str | None = None) -> Explanation | ProxyExplanation:
        """Return why a lease would be granted or refused now, or all that is known of a proxy.

        Args:
            name: of the proxy, or any of its principals.
        """
        return self._call(calls.explain(name))

    def ping(self) -> None:
        """Return when the daemon has answered."""
        self._call(calls.ping())

    def metrics(self) -> dict[str, Any]:
        """Return all that the daemon counts, as `families`."""
        return self._call(calls.metrics())

    def config(self) -> dict[str, Any]:
        """Return the daemon's `settings`."""
        return self._call(calls.config())

    def fleet(self) -> Fleet:
        """Return who leads the fleet of this host, and how its hosts are.

        Raises:
            InvalidRequest: the daemon serves this host alone.
            StoreUnavailable: nobody leads now; the message says since when.
        """
        return self._call(calls.fleet())

    # -- who and what ----------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return all `proxies`, `leases` and `sessions`, as of one `revision`.

        A row that appeared while this was read has nil, or nothing, in those fields of which
        events do not have, such as a proxy's `expires`.

        Raises:
            NoAnswer: they change faster than they can be read, and the history is off.
        """
        (event,) = self._perform(Stream().once(), patient=False)
        return Snapshot(event.fields)

    @overload
    def rows(self, of: Literal["proxies"]) -> Iterator[ProxyRow]: ...

    @overload
    def rows(self, of: Literal["leases"]) -> Iterator[LeaseRow]: ...

    @overload
    def rows(self, of: Literal["sessions"]) -> Iterator[SessionRow]: ...

    @overload
    def rows(self, of: str) -> Iterator[Result]: ...

    def rows(self, of: str) -> Iterator[Result]:
        """Return the rows of `proxies`, `leases` or `sessions`, read as they are needed.

        Each is as it was when it was read, so that they may contradict one another; `snapshot`
        does not.

        Raises:
            InvalidRequest: there is no such listing.
            NoAnswer: too many are read at the same time.
        """
        for page in self._perform(read_rows(of), patient=False):
            yield from map(ROWS[of], page.rows)

    # -- what has happened, and what happens -----------------------------------------------

    def log(self, after: int = 0, *, older: bool = False) -> dict[str, Any]:
        """Return the events that the daemon still has, oldest first.

        Args:
            after: a revision; the events that follow it are returned.
            older: whether to begin with the events before `oldest` that the daemon keeps longer:
                without grants and without the ends of leases that never claimed.

        Returns:
            A map: `events`, each an `Event`; `oldest`, the revision from which on none is
            missing, or None; `newest`, the daemon's revision; `history`, how many are kept.
            Nothing is missing if `after` + 1 >= `oldest`.
        """
        (history,) = self._perform(read_log(after, older=older), patient=False)
        return calls.own_fields(history.fields)

    def events(self, *, snapshot: bool = True) -> Generator[Event, None, None]:
        """Return what happens from now on, each change once and in order, forever.

        The first event is of the kind `snapshot`; those that follow lead on from it. Events that
        were lost on the way are fetched. When the daemon no longer has them, or has lost its
        state, an event `gap` says so, and another `snapshot` follows. While there is no daemon,
        it waits. `close`, also in another thread, ends it.

        Args:
            snapshot: False for no snapshots; then it begins with the next change, and goes on
                after a gap with what comes.

        Raises:
            DaemonAbsent, NoAnswer: only at the beginning.
            WrongCluster: the daemon serves another cluster.
        """
        return self._perform(Stream(snapshot=snapshot).run(), patient=True)

    # -- what admins do --------------------------------------------------------------------

    def force_release(self, lease: int) -> dict[str, Any]:
        """Take a lease back from its session, which is notified: it is `lost` there.

        Returns:
            A map: `released`, and whose it was: `session`, and the proxy's `name` or None.

        Raises:
            PermissionRefused: this user is no administrator.
        """
        return self._call(calls.force_release(lease))

    def end_session(self, session: int) -> dict[str, Any]:
        """End a session, which releases its leases.

        Returns:
            A map: `ended`, and `freed`, the ids of the leases.

        Raises:
            PermissionRefused: this user is no administrator.
        """
        return self._call(calls.end_session(session))

    def forget(
        self, name: str | None = None, *, group: str | None = None, generation: int | None = None
    ) -> dict[str, Any]:
        """Stop tracking a proxy or a group until gossip is newer than what is known now.

        Args:
            name: a proxy; give this or `group`.
            group: all proxies of a group, of all generations unless `generation` says which.
            generation: only this one of the group; then gossip of others counts at once.

        Returns:
            A map: `forgotten`; `claimed`, whether a lease still holds one of them; `until`, the
            moment of the daemon's clock until which old gossip does not bring them back, or None;
            `count`, for a group: how many there were.

        Raises:
            PermissionRefused: this user is no administrator.
            InvalidRequest: neither a proxy nor a group is given, or both.
        """
        return self._call(calls.forget(name, group, generation))

    def resume(self) -> dict[str, Any]:
        """End the pauses after failed dials: that of the host, and those of sessions.

        Returns:
            A map: `resumed`, how many there were.

        Raises:
            PermissionRefused: this user is no administrator.
        """
        return self._call(calls.resume())

    def drop_host(self, host: str) -> dict[str, Any]:
        """End all sessions of a host of the fleet at once, as if it had been lost.

        Args:
            host: its name.

        Returns:
            A map: `known`, whether the fleet knows the host; `sessions`, how many ended; `freed`,
            how many leases they held.

        Raises:
            PermissionRefused: this user is no administrator of the fleet.
            InvalidRequest: the daemon serves this host alone.
        """
        return self._call(calls.drop_host(host))

    def yield_lead(self, term: int) -> dict[str, Any]:
        """Let another candidate lead the fleet.

        Args:
            term: the term that is to end, from `fleet`. A request that is repeated does not end
                the next one, too.

        Returns:
            A map: `yielded`, False when that term was over already; `leader` and `term` of who
            has answered.

        Raises:
            PermissionRefused: this user is no administrator of the fleet.
            InvalidRequest: the daemon serves this host alone.
        """
        return self._call(calls.yield_lead(term))

    def reload(self) -> dict[str, Any]:
        """Make the daemon read its configuration again; `status` has the outcome.

        Returns:
            A map: `reloads`, the number that `status` has when it is done.

        Raises:
            PermissionRefused: this user is no administrator.
        """
        return self._call(calls.reload())

    # -- inside ----------------------------------------------------------------------------

    def _check_usable(self) -> None:
        """Refuse use where a call would do harm.

        Raises:
            TrackerClosed: `close` was called.
            UsedAfterFork: this is a forked child of the process that made the tracker.
            TrackdError: threads are greenlets by now, and a call would stop them all.
        """
        self._conversation.check_usable()
        check_threads()  # a program may have patched them since the tracker was made

    def _perform(self, steps: Steps, *, patient: bool) -> Generator[Any, None, None]:
        """Take the steps of a stream, and yield what is for the caller among them.

        Args:
            steps: as `trackd_client.core.stream` makes them.
            patient: whether to wait for a daemon that has gone, and to end quietly when the
                tracker is closed.
        """
        self._check_usable()
        begun = False
        answer: Any = None
        try:
            with self._connections.open(Subscription) as subscription:
                while True:
                    step = steps.send(answer)
                    answer = None
                    match step:
                        case Event() | Rows() | History():
                            yield step
                        case Ask():
                            answer = self._ask(step, subscription if patient and begun else None)
                            begun = True
                        case Subscribe():
                            endpoint = event_endpoint(self.endpoint, step.endpoint)
                            if endpoint is not None:
                                subscription.connect(endpoint)
                            answer = endpoint is not None
                        case Pause():
                            subscription.pause(step.seconds)
                        case Listen():
                            self._check_usable()  # not in a child process
                            answer = subscription.receive(step.seconds, self._connection_changed)
        except StopIteration:
            return
        except TrackerClosed:
            if not patient:
                raise
        except zmq.ZMQError as error:
            raise self._connections.error_of(error) from error

    def _ask(self, ask: Ask, waits: Subscription | None) -> dict[str, Any] | None:
        """Return the fields of a reply, or None where the daemon may refuse.

        Args:
            ask: what to ask.
            waits: with it, the question is asked until it is answered.
        """
        while True:
            try:
                fields: dict[str, Any] = self._request(ask.op, ask.fields, in_session=False)
            except InvalidRequest:
                if not ask.refusable:
                    raise
                return None
            except TROUBLES as error:
                if waits is None:
                    raise
                if isinstance(error, DaemonAbsent):
                    self._connection_changed(False)
                waits.pause(RETRY_SECONDS)
                continue
            if waits is not None:
                self._connection_changed(True)
            if ask.op == "hello":
                self._conversation.check_cluster(fields)
            return fields
