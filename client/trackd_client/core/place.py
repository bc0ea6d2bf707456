"""Where the daemon of a tracker is: given once, or looked for whenever the tracker connects."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from trackd_client.wire.places import SCHEME, PlaceError, client_endpoint


class Place:
    """The endpoint of a daemon, which may start later than the tracker."""

    def __init__(self, endpoint: str | None, cluster: str | None) -> None:
        """Check the endpoint, and make a given one absolute, for programs that change directory.

        Args:
            endpoint: `ipc://PATH` or a path, or None to look for the daemon.
            cluster: the name of the cluster, or None.

        Raises:
            PlaceError: the endpoint or the name of the cluster cannot be a place.
        """
        self._cluster = cluster
        self._found = client_endpoint(endpoint, cluster)
        self.is_given = endpoint is not None or bool(os.environ.get("TRACKD_ENDPOINT"))
        if self.is_given:
            self._found = _absolute(self._found)

    def find(self) -> str:
        """Return the endpoint to connect to now, beginning with `ipc://`."""
        if not self.is_given:
            with contextlib.suppress(PlaceError):  # the environment has changed
                self._found = client_endpoint(None, self._cluster)
        return self._found

    def has_moved_from(self, endpoint: str) -> bool:
        """Return whether the daemon is to be found elsewhere now."""
        return not self.is_given and self.find() != endpoint


def _absolute(endpoint: str) -> str:
    """Return the endpoint with an absolute path, or as it is when that cannot be."""
    try:
        return client_endpoint(f"{SCHEME}{Path(endpoint.removeprefix(SCHEME)).absolute()}")
    except (OSError, PlaceError):  # no directory, or the path is too long
        return endpoint
