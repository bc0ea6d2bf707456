"""Checks of what a program hands to the client: a mistake is a `BadArgument` that names it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from trackd_client.errors import BadArgument
from trackd_client.proxy import Proxy

log = logging.getLogger("trackd_client")


def check_type(value: object, kind: type, what: str, *, optional: bool = False) -> None:
    """Refuse an argument of the wrong type.

    Raises:
        BadArgument: `value` is not a `kind`, nor None where it is optional.
    """
    if not isinstance(value, kind) and not (optional and value is None):
        expected = "text" if kind is str else f"a {kind.__name__}"
        raise BadArgument(f"{what} must be {expected}, not {value!r:.100}")


def check_callable(value: object, what: str) -> None:
    """Refuse a callback that cannot be called.

    Raises:
        BadArgument: `value` is neither None nor callable.
    """
    if value is not None and not callable(value):
        raise BadArgument(f"{what} must be a function, not {value!r:.100}")


def check_number(value: object, what: str) -> None:
    """Refuse what cannot be a number of seconds; ranges are for the caller to check.

    Raises:
        BadArgument: `value` is not an int or a float.
    """
    if not isinstance(value, int | float):
        raise BadArgument(f"{what} must be a number of seconds, not {value!r:.100}")


def check_labels(labels: Any) -> None:
    """Refuse labels that cannot be sent.

    Raises:
        BadArgument: they are not a mapping of text to text.
    """
    try:
        pairs = dict(labels or {}).items()
    except (TypeError, ValueError):
        pairs = None
    if pairs is None or not all(isinstance(text, str) for pair in pairs for text in pair):
        raise BadArgument(f"labels must be a mapping of text to text, not {labels!r:.100}")


def principal_list(principals: tuple[Any, ...]) -> list[str]:
    """Return the principals of a proxy as they are sent.

    Without any, nothing can be meant: that is logged as a mistake in the program.

    Raises:
        BadArgument: one is not text.
    """
    if not principals:
        log.warning("no principals were given: pass the names that the proxy presents")
    for principal in principals:
        if not isinstance(principal, str):
            hint = "; unpack it with *" if isinstance(principal, Iterable) else ""
            raise BadArgument(f"a principal must be text, not {principal!r:.100}{hint}")
    return list(principals)


def proxy_rows(proxies: Iterable[Any]) -> list[list[Any]]:
    """Return proxies as they are sent.

    Raises:
        BadArgument: one of them is not a `Proxy`.
    """
    rows = []
    for proxy in proxies:
        if not isinstance(proxy, Proxy):
            raise BadArgument(f"track_expected takes Proxy objects, not {proxy!r:.100}")
        rows.append([proxy.name, proxy.group, proxy.generation, proxy.ttl])
    return rows
