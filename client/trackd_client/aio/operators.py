"""What operators ask and do, for the asyncio client: `AsyncTracker` has these methods too.

They are those of `trackd_client.sync.operators`, awaited.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any, Literal, overload

import zmq

from trackd_client.aio.subscription import AsyncSubscription
from trackd_client.core import calls
from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.calls import Call, T
from trackd_client.core.coverage import Wanted, pauses
from trackd_client.core.event import Event
from trackd_client.core.event_sockets import event_endpoint
from trackd_client.core.lease import LeaseT
from trackd_client.core.sockets import system_error
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


class AsyncOperations(BaseTracker[LeaseT]):
    """The part of a tracker that operators use; docs/protocol.md lists the fields of replies."""

    _context: zmq.Context[zmq.Socket[bytes]]
    _opened: list[AsyncSubscription]

    @abstractmethod
    async def _call(self, call: Call[T]) -> T:
        """Make a call and return its result."""

    @abstractmethod
    async def _request(
        self, op: str, fields: Mapping[str, Any], *, in_session: bool = True
    ) -> dict[str, Any]:
        """Make one request and return the fields of its reply."""

    @abstractmethod
    def _begin(self) -> None:
        """Connect, at the first call."""

    # -- how things stand ------------------------------------------------------------------

    async def status(self) -> Status:
        """Return the daemon's counts."""
        return await self._call(calls.status())

    async def wait_covered(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 - as `Tracker.wait_covered`
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
                if wanted.is_enough(await self.status()):
                    return True
                pause = next(looks, None)
                if pause is None:
                    return False
            except (DaemonAbsent, NoAnswer):
                pause = next(looks, None)
                if pause is None:
                    raise
            await asyncio.sleep(pause)

    @overload
    async def explain(self, name: None = None) -> Explanation: ...

    @overload
    async def explain(self, name: str) -> ProxyExplanation: ...

    async def explain(self, name: str | None = None) -> Explanation | ProxyExplanation:
        """Return why a lease would be granted, or of a proxy; see `Tracker.explain`."""
        return await self._call(calls.explain(name))

    async def ping(self) -> None:
        """Return when the daemon has answered."""
        await self._call(calls.ping())

    async def metrics(self) -> dict[str, Any]:
        """Return all that the daemon counts, as `families`."""
        return await self._call(calls.metrics())

    async def config(self) -> dict[str, Any]:
        """Return the daemon's `settings`."""
        return await self._call(calls.config())

    async def fleet(self) -> Fleet:
        """Return who leads the fleet, and how its hosts are; see `Tracker.fleet`."""
        return await self._call(calls.fleet())

    # -- who and what ----------------------------------------------------------------------

    async def snapshot(self) -> Snapshot:
        """Return all proxies, leases and sessions; see `Tracker.snapshot`."""
        (event,) = [event async for event in self._perform(Stream().once(), patient=False)]
        return Snapshot(event.fields)

    @overload
    def rows(self, of: Literal["proxies"]) -> AsyncIterator[ProxyRow]: ...

    @overload
    def rows(self, of: Literal["leases"]) -> AsyncIterator[LeaseRow]: ...

    @overload
    def rows(self, of: Literal["sessions"]) -> AsyncIterator[SessionRow]: ...

    @overload
    def rows(self, of: str) -> AsyncIterator[Result]: ...

    async def rows(self, of: str) -> AsyncIterator[Result]:
        """Return the rows of a listing; see `Tracker.rows`."""
        async with aclosing(self._perform(read_rows(of), patient=False)) as pages:
            async for page in pages:
                kind = ROWS[of]
                for row in page.rows:
                    yield kind(row)

    # -- what has happened, and what happens -----------------------------------------------

    async def log(self, after: int = 0, *, older: bool = False) -> dict[str, Any]:
        """Return the events that the daemon still has; see `Tracker.log`."""
        steps = read_log(after, older=older)
        (history,) = [step async for step in self._perform(steps, patient=False)]
        return calls.own_fields(history.fields)

    def events(self, *, snapshot: bool = True) -> AsyncGenerator[Event, None]:
        """Return what happens from now on; see `Tracker.events`."""
        return self._perform(Stream(snapshot=snapshot).run(), patient=True)

    # -- what admins do --------------------------------------------------------------------

    async def force_release(self, lease: int) -> dict[str, Any]:
        """Take a lease back from its session, which is notified: it is `lost` there."""
        return await self._call(calls.force_release(lease))

    async def end_session(self, session: int) -> dict[str, Any]:
        """End a session; see `Tracker.end_session`."""
        return await self._call(calls.end_session(session))

    async def forget(
        self, name: str | None = None, *, group: str | None = None, generation: int | None = None
    ) -> dict[str, Any]:
        """Stop tracking a proxy or a group until gossip is newer than what is known now."""
        return await self._call(calls.forget(name, group, generation))

    async def resume(self) -> dict[str, Any]:
        """End the pauses after failed dials; see `Tracker.resume`."""
        return await self._call(calls.resume())

    async def drop_host(self, host: str) -> dict[str, Any]:
        """End all sessions of a host of the fleet; see `Tracker.drop_host`."""
        return await self._call(calls.drop_host(host))

    async def yield_lead(self, term: int) -> dict[str, Any]:
        """Let another candidate lead the fleet; see `Tracker.yield_lead`."""
        return await self._call(calls.yield_lead(term))

    async def reload(self) -> dict[str, Any]:
        """Have the daemon read its configuration again; see `Tracker.reload`."""
        return await self._call(calls.reload())

    # -- inside ----------------------------------------------------------------------------

    async def _perform(self, steps: Steps, *, patient: bool) -> AsyncGenerator[Any, None]:
        """Take the steps of a stream, and yield what is for the caller among them."""
        self._begin()
        subscription = AsyncSubscription(self._context)
        self._opened.append(subscription)
        begun = False
        answer: Any = None
        try:
            while True:
                try:
                    step = steps.send(answer)
                except StopIteration:
                    return
                answer = None
                match step:
                    case Event() | Rows() | History():
                        yield step
                    case Ask():
                        answer = await self._ask(step, subscription if patient and begun else None)
                        begun = True
                    case Subscribe():
                        endpoint = event_endpoint(self.endpoint, step.endpoint)
                        if endpoint is not None:
                            subscription.connect(endpoint)
                        answer = endpoint is not None
                    case Pause():
                        await subscription.pause(step.seconds)
                    case Listen():
                        answer = await subscription.receive(step.seconds)
        except TrackerClosed:
            if not patient:
                raise
        except zmq.ZMQError as error:
            raise system_error(error) from error
        finally:
            self._opened.remove(subscription)
            subscription.close()

    async def _ask(self, ask: Ask, waits: AsyncSubscription | None) -> dict[str, Any] | None:
        """Return the fields of a reply, or None where it may be refused; see `Operations._ask`."""
        while True:
            try:
                fields = await self._request(ask.op, ask.fields, in_session=False)
            except InvalidRequest:
                if not ask.refusable:
                    raise
                return None
            except TROUBLES:
                if waits is None:
                    raise
                await waits.pause(RETRY_SECONDS)
                continue
            if ask.op == "hello":
                self._conversation.check_cluster(fields)
            return fields
