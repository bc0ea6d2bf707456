"""The keeper: a thread that does for a tracker what must not wait for its next call.

It delivers what may not get lost with a call that gave up (taking back a grant, releasing
a lease) for as long as it takes, and shows signs of life where the daemon cannot see this
process. It starts when there is something to do, and sleeps while there is nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import zmq

from trackd_client.clock import boottime
from trackd_client.connection import Connection, Happened, Wake
from trackd_client.errors import SessionLost, TrackdError
from trackd_client.session import RESEND_SECONDS, Conversation, Request, Stay, read_reply

#: Seconds between two tries while the daemon does not answer; doubled from `RESEND_SECONDS`.
_LONGEST_RESEND: Final = 30.0
#: Signs of life within one time-to-live.
_HEARTBEATS: Final = 3


@dataclass(slots=True)
class Errand:
    """A request that is sent until it is answered.

    Attributes:
        request: as it is sent.
        instead_of: the request whose grant it takes back, done when this one is; or None.
        due: when it is sent again, in seconds of CLOCK_BOOTTIME.
        pause: seconds until the next time after that.
    """

    request: Request
    instead_of: Request | None
    due: float
    pause: float = RESEND_SECONDS


class Keeper:
    """The thread and its errands."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        conversation: Conversation,
        on_lost: Callable[[Stay, SessionLost], None],
    ) -> None:
        self._context = context
        self._endpoint = endpoint
        self._conversation = conversation
        self._on_lost = on_lost
        self._lock = threading.Lock()
        self._wake = Wake()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._errands: dict[int, Errand] = {}
        self._heartbeat_at: float | None = None

    def keep(self, stay: Stay) -> None:
        """Show signs of life for a session that has just been opened, if it needs them."""
        if stay.heartbeat_ttl is not None:
            self._heartbeat_at = boottime() + stay.heartbeat_ttl / _HEARTBEATS
            self._run()

    def cancel(self, request: Request, stay: Stay) -> None:
        """Have whatever a request was granted taken back."""
        self._send("cancel", {"target": request.seq}, stay, request)

    def release(self, lease: int, stay: Stay) -> None:
        """Have a lease released."""
        self._send("release", {"lease": lease}, stay, None)

    def stop(self) -> None:
        """End the thread; what is not delivered by then ends with the session."""
        with self._lock:
            self._stopping = True
            thread = self._thread
        if thread is not None:
            self._wake.set()
            if thread is not threading.current_thread():
                thread.join()
        self._wake.close()

    def _send(
        self, op: str, fields: Mapping[str, Any], stay: Stay, instead_of: Request | None
    ) -> None:
        request = self._conversation.request(op, fields, None, stay)
        with self._lock:
            self._errands[request.seq] = Errand(request, instead_of, boottime())
        self._run()

    def _run(self) -> None:
        """Make sure that the thread runs and looks."""
        with self._lock:
            if self._stopping:
                return
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._main, name="trackd-keeper", daemon=True
                )
                self._thread.start()
            self._wake.set()

    def _main(self) -> None:
        connection = Connection(self._context, self._endpoint, self._wake)
        try:
            while not self._stopping:
                self._heartbeat()
                self._send_due(connection)
                happened, frame = connection.wait(self._pause())
                if happened is Happened.WOKEN:
                    self._wake.clear()
                elif happened is Happened.RECONNECTED:
                    self._send_again()
                elif happened is Happened.REPLY:
                    self._take(frame)
        finally:
            connection.close()

    def _pause(self) -> float | None:
        """Return the seconds until something is to be sent, or None."""
        with self._lock:
            times = [errand.due for errand in self._errands.values()]
        if self._heartbeat_at is not None:
            times.append(self._heartbeat_at)
        return max(0.0, min(times) - boottime()) if times else None

    def _heartbeat(self) -> None:
        stay = self._conversation.stay
        if self._heartbeat_at is None or boottime() < self._heartbeat_at:
            return
        if stay is None or stay.heartbeat_ttl is None:
            self._heartbeat_at = None
            return
        self._heartbeat_at = boottime() + stay.heartbeat_ttl / _HEARTBEATS
        request = self._conversation.request("heartbeat", {}, None, stay)
        with self._lock:
            waits = any(errand.request.op == "heartbeat" for errand in self._errands.values())
            if not waits:
                self._errands[request.seq] = Errand(request, None, boottime())
        if waits:
            self._conversation.settle(request)

    def _send_due(self, connection: Connection) -> None:
        now = boottime()
        with self._lock:
            due = [errand for errand in self._errands.values() if errand.due <= now]
            for errand in due:
                errand.due = now + errand.pause
                errand.pause = min(2 * errand.pause, _LONGEST_RESEND)
        for errand in due:
            connection.send(errand.request.frame)

    def _send_again(self) -> None:
        with self._lock:
            for errand in self._errands.values():
                errand.due = boottime()
                errand.pause = RESEND_SECONDS

    def _take(self, frame: bytes) -> None:
        """Take the reply of an errand, which is then done whatever it says."""
        try:
            reply = read_reply(frame)
        except TrackdError:
            return
        with self._lock:
            errand = self._errands.pop(reply.seq, None) if reply is not None else None
        if errand is None or reply is None:
            return
        if errand.instead_of is not None:
            self._conversation.settle(errand.instead_of)
        try:
            self._conversation.result(errand.request, reply)
        except SessionLost as error:
            if errand.request.stay is not None:
                self._on_lost(errand.request.stay, error)
        except TrackdError:
            pass  # the daemon refuses to release what is not ours: there is nothing to do
