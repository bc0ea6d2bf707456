"""What a shell may complete besides commands and options: proxies, leases, sessions, clusters.

The daemon is asked, briefly; where none answers, nothing is offered. A shell inserts a completion
into the command line as it is, so a name that means anything to a shell is not offered: peers
choose names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import click
from click.shell_completion import CompletionItem

from trackd_client import Tracker
from trackd_client.core.sockets import diagnose
from trackd_client.errors import TrackdError
from trackd_client.wire.places import RUN, SOCKET_NAME, PlaceError, unescape

#: Seconds that a person waits for a completion, and how many of them are of use.
_SECONDS: Final = 1.0
_MOST: Final = 200
#: Beside letters and digits, what no shell expands, splits or quotes.
_SAFE: Final = frozenset("._-:@/+")


def proxies(
    context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Return the names of proxies that begin like this."""
    return _rows(context, "proxies", "name", begun)


def leases(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the leases that begin like this, with what they hold."""
    return _rows(context, "leases", "lease", begun, "name")


def sessions(
    context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Return the sessions that begin like this, with who they are."""
    return _rows(context, "sessions", "session", begun, "name")


def hosts(context: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Return the hosts of the fleet that begin like this."""
    asked = {} if context.parent is None else context.parent.params
    found: list[str] = []
    with suppress(TrackdError, ValueError), _asked(asked) as tracker:
        if diagnose(tracker.endpoint) is None:
            found = [row.host for row in tracker.fleet().hosts]
    return [CompletionItem(each) for each in found if each.startswith(begun) and is_safe(each)]


def clusters(
    _context: click.Context, _parameter: click.Parameter, begun: str
) -> list[CompletionItem]:
    """Return the clusters that have a socket in the usual place."""
    found: list[str] = []
    with suppress(OSError):
        for place in RUN.iterdir():
            with suppress(PlaceError):
                if (place / SOCKET_NAME).is_socket():
                    found.append(unescape(place.name))
    return [
        CompletionItem(each) for each in sorted(found) if each.startswith(begun) and is_safe(each)
    ]


def is_safe(text: str) -> bool:
    """Return whether every shell takes a text for one plain word, and no command for an option."""
    return text[:1].isalnum() and all(each.isalnum() or each in _SAFE for each in text)


def _rows(
    context: click.Context, of: str, field: str, begun: str, about: str = ""
) -> list[CompletionItem]:
    """Return values of a field of a listing, each with what another field says of it."""
    asked = {} if context.parent is None else context.parent.params
    items: list[CompletionItem] = []
    with suppress(TrackdError, ValueError):
        for row in _listed(asked, of):
            value = str(row[field])
            if value.startswith(begun) and is_safe(value):
                help_ = str(row[about]) if about and is_safe(str(row[about])) else None
                items.append(CompletionItem(value, help=help_))
            if len(items) == _MOST:
                break
    return items


def _listed(asked: Mapping[str, Any], of: str) -> Iterator[dict[str, object]]:
    with _asked(asked) as tracker:
        if diagnose(tracker.endpoint) is None:
            yield from tracker.rows(of)


def _asked(asked: Mapping[str, Any]) -> Tracker:
    """Return a tracker for the daemon that the options before the command name."""
    endpoint, cluster = asked.get("endpoint"), asked.get("cluster")
    return Tracker(endpoint, cluster=cluster, timeout=_SECONDS, name="trackctl")
