"""ProcessWatcher: sends a message to the TrackerActor when a process with a session exits.

It holds one pidfd for each process, which the kernel makes readable at the exit, and waits
for all of them and for its own messages in one epoll: no polling, no heartbeat that could
fail falsely. The start time guards against pids that were reused before the pidfd was open.
"""

from __future__ import annotations

import logging
import os
import select
import time
from typing import Any

import pykka

from trackd.actors.inbox import Inbox, ReceiveTimeout
from trackd.actors.messages import Ping, ProcessExited, UnwatchProcess, WatchProcess
from trackd.actors.supervised import OnEnd, SupervisedActor, refuse_message, send
from trackd.host.logs import fields
from trackd.host.processes import start_time
from trackd.sessions.identity import Process
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd.watcher")

#: Seconds after which a process that could not be watched is tried again.
RETRY_SECONDS = 5.0


class PidfdInbox(Inbox):
    """An inbox that also returns a `ProcessExited` when a watched process exits."""

    def __init__(self) -> None:
        super().__init__()
        self._process_of: dict[int, Process] = {}
        self._pidfd_of: dict[Process, int] = {}
        self._later: set[Process] = set()

    def on_readable(self, descriptor: int) -> None:
        """Read the exit that a pidfd reports."""
        process = self._process_of.get(descriptor)
        if process is not None:
            self.unwatch(process)
            self.post(ProcessExited(process, boottime()))

    def retry(self) -> None:
        """Return the processes that could not be watched once more, each as a `WatchProcess`."""
        for process in self._later:
            self.post(WatchProcess(process, again=True))
        self._later.clear()

    def watch(self, process: Process) -> bool:
        """Begin to watch; return whether the process still lives.

        Raises:
            OSError: it cannot be watched now; a later try follows.
        """
        if process in self._pidfd_of:
            return True
        self._later.add(process)
        self.wake_at = time.monotonic() + RETRY_SECONDS
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            self._later.remove(process)
            return False
        except OSError:
            # Refused for good by a seccomp filter, say. Then each retry looks at the start time.
            if start_time(process.pid) != process.start:
                self._later.remove(process)
                return False
            raise
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
        """Stop watching a process, if it is watched."""
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
        super().close()


class ProcessWatcher(SupervisedActor):
    """The actor."""

    def __init__(self, on_end: OnEnd, tracker: pykka.ActorRef[Any]) -> None:
        self._inbox = PidfdInbox()
        self._tracker = tracker
        super().__init__(on_end, self._inbox)

    def on_stop(self) -> None:
        """Close the descriptors. Runs in the actor's thread."""
        try:
            self._inbox.close()
        finally:
            super().on_stop()

    def on_receive(self, message: Any) -> Any:
        """Handle one message. Runs in the actor's thread."""
        if isinstance(message, WatchProcess):
            self._watch(message)
        elif isinstance(message, UnwatchProcess):
            self._inbox.unwatch(message.process)
        elif isinstance(message, ReceiveTimeout):
            self._inbox.retry()
        elif isinstance(message, ProcessExited):
            send(self._tracker, message)
        elif not isinstance(message, Ping):
            refuse_message(self, message)

    def _watch(self, message: WatchProcess) -> None:
        process = message.process
        try:
            alive = self._inbox.watch(process)
        except OSError as error:
            # For example, no descriptors are free. Ending the daemon would not help.
            if not message.again:
                reason = fields(pid=process.pid, reason=str(error))
                log.error("cannot watch a process for now", extra=reason)  # noqa: TRY400 - it says it all
            return
        if not alive:
            send(self._tracker, ProcessExited(process, boottime()))
