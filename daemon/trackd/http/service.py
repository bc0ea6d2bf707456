"""HttpService: HTTP for as long as the daemon runs, and agents first.

An address that another program holds, or that cannot be used for another reason, never keeps the
daemon from serving agents. It is logged, `status` shows it, and it is tried again.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from trackd.actors.supervised import OnEnd
from trackd.config.addresses import parse_address
from trackd.config.exits import StartError, UnusableError
from trackd.config.settings import Config
from trackd.host.logs import fields
from trackd.host.own_paths import OwnPaths
from trackd.host.places import events_endpoint
from trackd.http.listener import HttpListener
from trackd.operations.runtime import HttpState
from trackd_client.wire.places import check_ipc_path

log = logging.getLogger("trackd.http")

#: Seconds between two attempts to listen.
RETRY_SECONDS: Final = 5.0


class HttpService:
    """Starts the listener, as often as it takes, and stops it."""

    name = HttpListener.__name__

    def __init__(self, config: Config, on_end: OnEnd, state: HttpState, own: OwnPaths) -> None:
        """Check the address; nothing is opened before `start`.

        Args:
            config: says where.
            on_end: called when a listener that served has ended.
            state: where to note why HTTP is not served.
            own: where to note the socket.

        Raises:
            UnusableError: it is the daemon's own socket.
        """
        path = parse_address(config.http).path
        used = [place for place in (config.endpoint, events_endpoint(config.endpoint)) if place]
        if path is not None and path in [check_ipc_path(place) for place in used]:
            raise UnusableError(f"cannot serve HTTP on {path}: it is the daemon's own socket")
        self._config = config
        self._on_end = on_end
        self._state = state
        self._own = own
        self._stopping = threading.Event()
        self._listener: HttpListener | None = None
        self._retry: threading.Thread | None = None

    def start(self) -> None:
        """Serve now, or later if the address cannot be had now."""
        if not self._try():
            self._start_retry()

    def stop(self, seconds: float) -> bool:
        """End it; return whether it has ended in time."""
        deadline = time.monotonic() + seconds
        self._stopping.set()
        if self._retry is not None:
            self._retry.join(seconds)
            if self._retry.is_alive():
                return False
        return self._listener is None or self._listener.stop(max(0.0, deadline - time.monotonic()))

    def _try(self) -> bool:
        try:
            listener = HttpListener(self._config, self._listener_ended, self._own)
        except StartError as error:
            if str(error) != self._state.problem:
                self._state.problem = str(error)
                log.warning("HTTP is not served for now; agents are", extra=fields(reason=error))
            return False
        self._listener = listener
        listener.start()
        if self._state.problem is not None:
            self._state.problem = None
            log.info("HTTP is served", extra=fields(http=self._config.http))
        return True

    def _listener_ended(self, name: str, thread: threading.Thread) -> None:
        """Listen again when the socket was removed; report any other end. The listener's thread."""
        if isinstance(thread, HttpListener) and thread.lost and not self._stopping.is_set():
            self._state.problem = "its socket was removed or replaced"
            self._start_retry()
        else:
            self._on_end(name, thread)

    def _start_retry(self) -> None:
        self._retry = threading.Thread(target=self._try_again, name="http retry", daemon=True)
        self._retry.start()

    def _try_again(self) -> None:
        while not self._stopping.wait(RETRY_SECONDS):
            if self._try():
                return
