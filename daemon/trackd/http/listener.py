"""HttpListener: the sockets and threads of HTTP, served by waitress; bounded in every direction.

One thread moves bytes for all connections, so that a slow client costs a buffer and no thread;
a few more run the application once a request is whole. The server starts it after the daemon
serves and stops it first. Its end is reported like the end of an actor.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Final

import zmq
from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import BaseWSGIServer, create_server
from waitress.trigger import trigger

from trackd.actors.supervised import OnEnd
from trackd.config.addresses import parse_address
from trackd.config.exits import LockHeldError, UnusableError, reason_of
from trackd.config.settings import Config
from trackd.host.lock import acquire_lock
from trackd.host.own_paths import OwnPaths
from trackd.host.places import listen_at, lock_path
from trackd.http.app import application
from trackd.probe import Probe
from trackd_client import Tracker

log = logging.getLogger("trackd.http")

#: Seconds that the daemon may take to answer.
ANSWER_SECONDS: Final = 2.0
#: Seconds that a request may take to arrive, that an answer may wait for a client to take some
#: of it, and that a connection may lie idle.
REQUEST_SECONDS: Final = 10
IDLE_SECONDS: Final = 30
#: What waitress looks after at a time: connections, and a few descriptors of its own.
CONNECTIONS: Final = 64
THREADS: Final = 4
#: Connections beyond which the oldest idle ones are closed.
MOST_IDLE: Final = 48
#: The thread pauses for so many times what it has used, in seconds at most.
SHARE: Final = 6
_LONGEST_PAUSE: Final = 0.05
#: Bytes of answers that wait for one client to take them.
_MAX_UNREAD: Final = 2 << 20
_MAX_HEADERS: Final = 16_384
_MAX_BODY: Final = 1_024
_BACKLOG: Final = 64
#: Seconds between two looks at who is slow.
_LOOK_SECONDS: Final = 1
#: Seconds that the threads may take to end; all that they wait for has been ended before.
_END_SECONDS: Final = 0.5


class HttpListener(threading.Thread):
    """Serves HTTP from `start` to `stop`.

    Attributes:
        lost: whether it ended because its socket was removed or replaced.
    """

    def __init__(self, config: Config, on_end: OnEnd, own: OwnPaths) -> None:
        """Listen; nothing is answered before `start`, for which the daemon must serve.

        Args:
            config: says where.
            on_end: called with a name and this thread once nothing is served any more.
            own: where to note the socket and its lock.

        Raises:
            UnusableError: the address or the path cannot be listened on.
        """
        super().__init__(name=type(self).__name__, daemon=True)
        self.lost = False
        self._on_end = on_end
        self._own = own
        path = parse_address(config.http).path
        self._files = [] if path is None else [path, lock_path(path)]
        self._stopping = threading.Event()
        self._lock = threading.Lock()  # guards the next, and what it says
        self._wakes = True
        self._used = 0.0  # processor seconds of the thread, when it last paused
        self._map: dict[int, Any] = {}  # of waitress: what its loop looks after, by descriptor
        self._arrivals: weakref.WeakKeyDictionary[object, float] = weakref.WeakKeyDictionary()
        with contextlib.ExitStack() as places:
            sockets = _listen(config, places, own)
            self._places = places.pop_all()
        self._tracker = Tracker(config.endpoint, timeout=ANSWER_SECONDS, name="trackd http")
        self._readiness = _Readiness(config.endpoint, self._stopping)
        app = application(
            self._tracker,
            self._readiness.problem,
            any_host=sockets[0].family == socket.AF_UNIX,
            pause=self._stopping.wait,
        )
        self._wake = trigger(self._map)
        self._dispatcher = create_server(
            app,
            map=self._map,
            sockets=sockets,
            threads=THREADS,
            backlog=_BACKLOG,
            connection_limit=CONNECTIONS,
            channel_timeout=IDLE_SECONDS,
            cleanup_interval=_LOOK_SECONDS,
            outbuf_high_watermark=_MAX_UNREAD,
            max_request_header_size=_MAX_HEADERS,
            max_request_body_size=_MAX_BODY,
            ident=None,
            asyncore_use_poll=True,
            log_socket_errors=False,
        ).task_dispatcher
        self._servers = [each for each in self._map.values() if isinstance(each, BaseWSGIServer)]
        # A queue of a request or two is not worth a warning.
        logging.getLogger("waitress.queue").setLevel(logging.ERROR)

    def stop(self, seconds: float) -> bool:
        """Stop it; return whether it stopped in time. Any thread may call it."""
        self._stopping.set()
        if self.ident is None:  # it was never started
            self._end()
            return True
        with self._lock:
            if self._wakes:
                self._wake.pull_trigger()
        self.join(seconds)
        return not self.is_alive()

    def run(self) -> None:
        """Serve. The thread."""
        try:
            while not self._stopping.is_set():
                wasyncore.loop(_LOOK_SECONDS, use_poll=True, map=self._map, count=1)
                self._hang_up_on_the_slow()
                self._make_room()
                self._yield_to_agents()
                if not all(self._own.is_own(path) for path in self._files):
                    self.lost = True
                    break
                if not all(server.accepting for server in self._servers):
                    raise RuntimeError("a socket listens no more")
        except Exception:
            log.exception("unexpected failure")
        finally:
            self._stopping.set()
            self._end()
            self._on_end(self.name, self)

    def _hang_up_on_the_slow(self) -> None:
        """Close connections whose request does not arrive, or whose answer is not read.

        waitress itself is content with a byte now and then, and does not close what it cannot
        write to, though a thread may wait for just that.
        """
        now, moment = time.monotonic(), time.time()
        for channel in [each for each in self._map.values() if isinstance(each, HTTPChannel)]:
            if channel.request is not None:
                late = now - self._arrivals.setdefault(channel.request, now) > REQUEST_SECONDS
            else:
                unread = channel.total_outbufs_len > 0
                late = unread and moment - channel.last_activity > REQUEST_SECONDS
            if late:
                channel.handle_close()

    def _make_room(self) -> None:
        """Close the oldest connections that ask for nothing when there are many.

        Else those who begin a request and never end it would keep everybody else out.
        """
        channels = [each for each in self._map.values() if isinstance(each, HTTPChannel)]
        idle = [each for each in channels if not each.requests and not each.total_outbufs_len]
        idle.sort(key=lambda channel: channel.creation_time)
        for channel in idle[: max(0, len(channels) - MOST_IDLE)]:
            channel.handle_close()

    def _yield_to_agents(self) -> None:
        """Pause for several times what this thread has used, so that the writer has its share."""
        used, self._used = time.thread_time() - self._used, time.thread_time()
        self._stopping.wait(min(_LONGEST_PAUSE, SHARE * used))

    def _end(self) -> None:
        """Close everything, in the order that leaves no thread with what is closed."""
        for channel in [each for each in self._map.values() if isinstance(each, HTTPChannel)]:
            channel.handle_close()
        self._tracker.close()  # ends the calls of the threads that are in one
        self._dispatcher.shutdown(timeout=_END_SECONDS)
        with self._lock:
            self._wakes = False
            wasyncore.close_all(self._map, ignore_all=True)
        self._readiness.close()
        self._places.close()


class _Readiness:
    """Makes requests through the one writer and a commit of the store, one at a time."""

    def __init__(self, endpoint: str, stopping: threading.Event) -> None:
        self._lock = threading.Lock()
        self._stopping = stopping
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._probe = Probe(self._context, endpoint)

    def problem(self) -> str | None:
        """Return why the daemon is not ready just now, or None. Any thread."""
        with self._lock:
            if self._stopping.is_set():
                return "the daemon stops"
            counts = self._probe.trip(ANSWER_SECONDS, give_up=self._stopping.is_set)
        if counts is None:
            return f"the daemon has not answered within {ANSWER_SECONDS:g} s"
        if counts["store"] == "failing":
            return "changes cannot be stored; see the daemon's log, or trackctl status"
        return None

    def close(self) -> None:
        """Close the socket."""
        with self._lock:
            self._probe.close()
            self._context.term()


def _listen(config: Config, places: contextlib.ExitStack, own: OwnPaths) -> list[socket.socket]:
    """Return bound sockets, which `places` closes.

    Raises:
        UnusableError: the first of them cannot be had.
    """
    address = parse_address(config.http)
    if address.path is not None:
        return [_listen_on_path(address.path, config, places, own)]
    sockets: list[socket.socket] = []
    for host in address.hosts:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            bound = places.enter_context(socket.socket(family, socket.SOCK_STREAM))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((host, address.port))
        except OSError as error:
            if sockets:
                continue  # localhost on a host without IPv6
            raise UnusableError(
                f"cannot serve HTTP on {config.http}: {reason_of(error)}; choose another port, or,"
                " under systemd, see http-over-tcp.conf"
            ) from None
        sockets.append(bound)
    return sockets


def _listen_on_path(
    path: Path, config: Config, places: contextlib.ExitStack, own: OwnPaths
) -> socket.socket:
    """Return a socket that listens on a path; its mode holds from the bind on."""
    what = f"the socket of HTTP {path}"
    try:
        places.enter_context(acquire_lock(lock_path(path), what, config.cluster_name))
        own.add(lock_path(path), "lock of HTTP")
        places.callback(own.discard, lock_path(path))
        bound = places.enter_context(listen_at(path, config.socket_mode, own, "socket of HTTP"))
    except LockHeldError as error:
        raise UnusableError(str(error)) from None
    except OSError as error:
        raise UnusableError(f"cannot serve HTTP on {path}: {reason_of(error)}") from None
    places.callback(own.remove, path)
    return bound
