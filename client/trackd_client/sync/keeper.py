"""The keeper: a thread that does for a tracker what cannot wait for its next call.

It parks `watch_session`, and so gets the daemon's notices at once. It sends what must not be lost
with a call that gave up (`cancel`, `release`) until the daemon replies. It sends heartbeats where
the daemon cannot see this process. It starts with the session and sleeps while idle.
"""

# ruff: noqa: SLF001 - the keeper is a part of its tracker

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass
from typing import Any, Final

from trackd_client.core.base_tracker import BaseTracker
from trackd_client.core.conversation import (
    RESEND_SECONDS,
    Conversation,
    Request,
    Session,
    find_reply,
    lengthen,
)
from trackd_client.core.sockets import start_thread
from trackd_client.errors import PASSING, TrackerClosed
from trackd_client.sync.connection import Connection, Connections, Happened, Wake
from trackd_client.wire import requests
from trackd_client.wire.clock import boottime
from trackd_client.wire.requests import RequestFields

#: Seconds until the thread goes on after an error, or looks where the daemon is to be found now.
_PAUSE: Final = 1.0


@dataclass(slots=True)
class Errand:
    """A request that is sent until it is answered.

    Attributes:
        request: the request.
        settles: a request that is done together with this one, or None.
        due: when it is sent next, in seconds of CLOCK_BOOTTIME.
        pause: seconds from then to the next time; infinity: it is sent once.
    """

    request: Request
    settles: Request | None
    due: float
    pause: float = RESEND_SECONDS


class Keeper:
    """The thread and its errands, for one tracker."""

    def __init__(
        self,
        conversation: Conversation,
        tracker: BaseTracker[Any],
        connections: Connections,
    ) -> None:
        self._conversation = conversation
        self._tracker = weakref.ref(tracker)  # so that a tracker that is dropped is noticed
        self._connections = connections
        self.lock = threading.RLock()  # a signal handler or a finalizer may come here too
        self._starting = False
        self._wake = Wake()
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._errands: dict[int, Errand] = {}
        self._heartbeat_at = math.inf

    def keep(self, session: Session) -> None:
        """Watch a session that has just been opened, and send its heartbeats."""
        pause = session.heartbeat_pause
        self._heartbeat_at = math.inf if pause is None else boottime() + pause
        self.send(requests.WatchSession(), session)

    def ensure(self) -> None:
        """Start the thread if there is work for it, and an earlier try failed."""
        if self._thread is None and self._errands:
            with self.lock:
                self._start()

    def stop(self, seconds: float) -> None:
        """End the thread. Errands that are left end with the session.

        Args:
            seconds: how long to wait for its end. It may wait for what this thread holds, when
                a signal handler stops it, and ends later then.
        """
        with self.lock:
            self._stopping = True
            thread = self._thread
            if thread is None:
                self._wake.close()
            else:
                self._wake.set()
        if thread is not None and seconds and thread is not threading.current_thread():
            thread.join(seconds)  # not from its own callback: it ends after that

    def send(
        self, fields: RequestFields, session: Session, *, settles: Request | None = None
    ) -> None:
        """Add an errand, and start or wake the thread."""
        request = self._conversation.request(fields.op, fields.encode(), None, session)
        with self.lock:
            if self._stopping:
                return
            self._errands[request.seq] = Errand(request, settles, boottime())
            self._start()
            self._wake.set()

    def wake(self) -> None:
        """Let the thread look what is due. Any thread; it never waits."""
        with self.lock:
            if not self._stopping:
                self._wake.set()

    def _start(self) -> None:
        """Start the thread if there is none. Holds the lock."""
        if self._thread is not None or self._stopping or self._starting:
            return
        self._starting = True
        try:
            thread = threading.Thread(target=self._main, name="trackd-keeper", daemon=True)
            start_thread(thread)
        except (RuntimeError, MemoryError) as error:  # too many threads, or the interpreter ends
            tracker = self._tracker()
            if tracker is not None:
                tracker._log_no_thread(error)
        else:
            self._thread = thread
        finally:
            self._starting = False

    def _become_keeper(self) -> bool:
        """Make this thread the keeper's; return False when it is not needed.

        A start that an exception interrupted may have started it beside another one.
        """
        with self.lock:
            if self._thread is None and not self._stopping:
                self._thread = threading.current_thread()
            return self._thread is threading.current_thread()

    def _main(self) -> None:
        if not self._become_keeper():
            return
        while not self._stopping:
            try:
                with self._connections.lend(self._wake) as connection:
                    self._send_again()
                    self._serve(connection)
            except TrackerClosed:
                break
            except (Exception, SystemExit) as error:  # noqa: BLE001 - it passes, and others rely on this thread
                tracker = self._tracker()
                if tracker is not None:
                    tracker._log_broken(error)
                tracker = None
                self._wake.clear()
                self._wake.wait(_PAUSE)
        with self.lock:  # `stop` may set it now, and its number may be reused after the close
            self._wake.close()

    def _serve(self, connection: Connection) -> None:
        """Send errands and take replies until the thread stops, or the daemon is elsewhere."""
        place = self._connections.place
        while not self._stopping:
            self._heartbeat()
            if connection.connected:
                self._report()
            self._send_due(connection)
            if not connection.connected and place.has_moved_from(connection.endpoint):
                return
            happened, frame = connection.wait(self._pause(connection))
            match happened:
                case Happened.WOKEN:
                    self._wake.clear()
                case Happened.REPLY:
                    self._take(frame)
                case Happened.CONNECTED:
                    self._connection_changed(True)
                case Happened.RECONNECTED:
                    self._connection_changed(True)
                    self._say_hello()
                    self._send_again()
                case Happened.DISCONNECTED:
                    self._connection_changed(False)
                case Happened.TIMEOUT:
                    pass

    def _connection_changed(self, connected: bool) -> None:
        tracker = self._tracker()
        if tracker is not None:
            tracker._connection_changed(connected)

    def _say_hello(self) -> None:
        """Ask what the daemon can do, unless that is under way."""
        with self.lock:
            waits = any(errand.request.op == "hello" for errand in self._errands.values())
        session = self._conversation.session
        if session is not None and not waits:
            self.send(requests.Hello(), session)

    def _pause(self, connection: Connection) -> float | None:
        """Return the seconds until something must be done, or None."""
        with self.lock:
            due = min((errand.due for errand in self._errands.values()), default=math.inf)
        due = min(due, self._heartbeat_at)
        if connection.connected and self._tracker() is not None:
            due = min(due, self._conversation.reports.due())
        if not connection.connected and not self._connections.place.is_given:
            due = min(due, boottime() + _PAUSE)
        return None if due == math.inf else max(0.0, due - boottime())

    def _heartbeat(self) -> None:
        if boottime() < self._heartbeat_at:
            return
        session = self._conversation.session
        pause = None if session is None else session.heartbeat_pause
        if session is None or pause is None:
            self._heartbeat_at = math.inf
            return
        self._heartbeat_at = boottime() + pause
        with self.lock:
            waits = any(errand.request.op == "heartbeat" for errand in self._errands.values())
        if not waits:
            self.send(requests.Heartbeat(), session)

    def _report(self) -> None:
        """Send what leases have reported, when it is time; an earlier batch is given up."""
        tracker = self._tracker()
        if tracker is None or boottime() < self._conversation.reports.due():
            return
        request = tracker._take_reports()
        if request is None:
            return
        with self.lock:
            for errand in list(self._errands.values()):
                if errand.pause == math.inf:
                    self._conversation.settle(self._errands.pop(errand.request.seq).request)
            self._errands[request.seq] = Errand(request, None, boottime(), math.inf)

    def _send_due(self, connection: Connection) -> None:
        now = boottime()
        with self.lock:
            due = [errand for errand in self._errands.values() if errand.due <= now]
            for errand in due:
                errand.due = now + errand.pause
                if errand.pause < math.inf:
                    errand.pause = lengthen(errand.pause)
        for errand in due:
            connection.send(errand.request.frame)

    def _send_again(self) -> None:
        with self.lock:
            for errand in self._errands.values():
                if errand.pause < math.inf:
                    errand.due = boottime()

    def _take(self, frame: bytes) -> None:
        """Handle the reply of an errand, which is then done unless the error will pass."""
        reply = find_reply(frame)
        if reply is None or reply.error in PASSING:
            return  # the errand is sent again after its pause
        with self.lock:
            errand = self._errands.pop(reply.seq, None)
        tracker = self._tracker()
        if errand is not None and tracker is not None:
            tracker._take_errand(errand.request, errand.settles, reply)
