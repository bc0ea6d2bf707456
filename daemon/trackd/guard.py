"""PlaceGuard: what the daemon does when somebody removes or replaces its files while it runs.

logind removes `/run/user/UID`, and cleaning jobs and people remove what they take for old. A
daemon whose socket is gone looks healthy from inside, and nobody can reach it; a daemon whose state
file is gone stores changes where no restart finds them. So the overseer looks every 1.5 seconds.
Locks are taken again first, because another daemon may have the place by now: then this one ends.
Then the sockets are bound again, and the state is stored again; nothing that was acknowledged is
lost. What cannot be done ends the daemon with an error, except for the state files: until they can
be created, changes fail as `unavailable`.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import Any, Final

import pykka

from trackd.actors.messages import Bind, RestoreFiles
from trackd.config.exits import StartError
from trackd.config.settings import Config
from trackd.host.logs import fields
from trackd.host.places import Places, events_endpoint
from trackd_client.wire.places import check_ipc_path

log = logging.getLogger("trackd")

#: Seconds that an actor may take.
_ASK_SECONDS: Final = 5.0
_LOST: Final = "a file of the daemon was removed or replaced"
_LINKED: Final = "a file of the daemon has a second name, a hard link"


class PlaceGuard:
    """Looks at the daemon's files, and acts. Only the main thread uses it."""

    def __init__(
        self,
        config: Config,
        places: Places,
        tracker: pykka.ActorRef[Any],
        publisher: pykka.ActorRef[Any],
    ) -> None:
        """Set up the guard.

        Args:
            config: has the endpoint.
            places: the daemon's places.
            tracker: serves the endpoint, and stores the state.
            publisher: serves the endpoint of events.
        """
        self._places = places
        self._tracker = tracker
        self._sockets = {check_ipc_path(config.endpoint): (config.endpoint, tracker)}
        if events := events_endpoint(config.endpoint):
            self._sockets[check_ipc_path(events)] = (events, publisher)
        self._reported: dict[Path, str] = {}

    def check(self) -> None:
        """Look at every file once, and act on what is lost.

        Raises:
            StartError: the daemon cannot serve at its place any more.
        """
        lost = self._places.own.find_lost()
        for path, what in lost.items():
            if path not in self._reported:
                linked = self._places.own.is_linked(path)
                log.error(_LINKED if linked else _LOST, extra=fields(path=str(path), what=what))
        self._reported = lost
        if not lost:
            return
        try:
            self._places.take_again()
            for path in lost.keys() & self._sockets.keys():
                self._bind_again(path, lost[path])
        except StartError as error:
            raise type(error)(f"{error} (the daemon's own files there were removed)") from None
        if "state" in lost.values():
            with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
                self._tracker.ask(RestoreFiles(), timeout=_ASK_SECONDS)

    def _bind_again(self, path: Path, what: str) -> None:
        endpoint, actor = self._sockets[path]
        known = self._places.own.get(path)
        assert known is not None
        descriptor = self._places.listen(path, known.mode, known.gid)
        with contextlib.suppress(pykka.ActorDeadError, pykka.Timeout):
            actor.ask(Bind(endpoint, descriptor), timeout=_ASK_SECONDS)
            log.warning("served again", extra=fields(path=str(path), what=what))
