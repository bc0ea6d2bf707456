"""ProcessWatcher: tells the TrackerActor when a process that has a session exits.

It holds one pidfd for each process, which the kernel makes readable at the exit, and waits
for all of them and for its own messages in one epoll: no polling, no heartbeat that could
fail falsely. The start time guards against pids that were reused before the pidfd was open.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections import deque
from typing import Any

import pykka
from pykka._envelope import Envelope

from trackd.actors.messages import Ping, ProcessExited, Unwatch, Watch
from trackd.actors.supervised import OnEnd, SupervisedActor, tell, unexpected
from trackd.host.logs import fields
from trackd.host.processes import start_time
from trackd.sessions.identity import Process
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd.watcher")

#: Seconds after which a process that could not be watched is tried again.
RETRY_SECONDS = 5.0


class PidfdInbox:
    """A queue whose `get` also returns, with `ProcessExited`, when a watched process exits."""

    def __init__(self) -> None:
        self._messages: deque[Envelope[Any]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, select.EPOLLIN)
        self._process_of: dict[int, Process] = {}
        self._pidfd_of: dict[Process, int] = {}
        self._later: set[Process] = set()
        self._retry_at = 0.0

    def put(self, envelope: Envelope[Any], /) -> None:
        """Add a message and wake the wait. Any thread."""
        self._messages.append(envelope)
        os.eventfd_write(self._wake, 1)

    def empty(self) -> bool:
        """Tell whether no message waits."""
        return not self._messages

    def get(self) -> Envelope[Any]:
        """Wait for the next message, or for an exit. The actor's thread."""
        while True:
            if self._messages:
                return self._messages.popleft()
            wait = max(0.0, self._retry_at - time.monotonic()) if self._later else None
            for descriptor, _ in self._epoll.poll(wait):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                elif (process := self._process_of.get(descriptor)) is not None:
                    self.unwatch(process)
                    self._messages.append(Envelope(ProcessExited(process, boottime())))
            if self._later and time.monotonic() >= self._retry_at:
                self._messages.extend(Envelope(Watch(each, again=True)) for each in self._later)
                self._later.clear()

    def watch(self, process: Process) -> bool:
        """Begin to watch; tell whether the process still lives.

        Raises:
            OSError: it cannot be watched just now; `get` returns it once more as a `Watch`.
        """
        if process in self._pidfd_of:
            return True
        self._later.add(process)
        self._retry_at = time.monotonic() + RETRY_SECONDS
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._later.remove(process)
            return False
        try:
            alive = start_time(process.pid) == process.start
            if alive:
                self._epoll.register(pidfd, select.EPOLLIN)
        except OSError:
            os.close(pidfd)
            raise
        self._later.remove(process)
        if not alive:
            os.close(pidfd)
            return False
        self._pidfd_of[process] = pidfd
        self._process_of[pidfd] = process
        return True

    def unwatch(self, process: Process) -> None:
        """Stop watching, if it is watched."""
        self._later.discard(process)
        pidfd = self._pidfd_of.pop(process, None)
        if pidfd is not None:
            del self._process_of[pidfd]
            self._epoll.unregister(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        """Close every descriptor but the one that `put` may still write to."""
        for process in list(self._pidfd_of):
            self.unwatch(process)
        self._epoll.close()


class ProcessWatcher(SupervisedActor):
    """The actor."""

    def __init__(self, on_end: OnEnd, tracker: pykka.ActorRef[Any]) -> None:
        self._inbox = PidfdInbox()
        self._tracker = tracker
        super().__init__(on_end)

    def _create_actor_inbox(self) -> PidfdInbox:  # type: ignore[override] # a method, where pykka has a static one
        return self._inbox

    def on_stop(self) -> None:
        """Close the descriptors. Runs in the actor's thread."""
        try:
            self._inbox.close()
        finally:
            super().on_stop()

    def on_receive(self, message: Any) -> Any:
        """Handle one message. Runs in the actor's thread."""
        if isinstance(message, Watch):
            self._watch(message)
        elif isinstance(message, Unwatch):
            self._inbox.unwatch(message.process)
        elif isinstance(message, ProcessExited):
            tell(self._tracker, message)
        elif not isinstance(message, Ping):
            unexpected(self, message)

    def _watch(self, message: Watch) -> None:
        process = message.process
        try:
            alive = self._inbox.watch(process)
        except OSError as error:
            # Out of descriptors, say. Ending the daemon would lose nothing, but help nobody.
            if not message.again:
                reason = fields(pid=process.pid, reason=str(error))
                log.error("cannot watch a process for now", extra=reason)  # noqa: TRY400 - it says it all
            return
        if not alive:
            tell(self._tracker, ProcessExited(process, boottime()))
