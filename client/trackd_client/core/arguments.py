"""Checks of what a program hands to the client: a mistake is a `BadArgument` that names it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from trackd_client.errors import BadArgument
from trackd_client.proxy import Proxy
from trackd_client.wire.checks import is_address
from trackd_client.wire.requests import MAX_RETRY_AFTER, MAX_RTT, OUTCOMES

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


def check_rtt(rtt: Any) -> None:
    """Refuse what cannot be a round-trip time.

    Raises:
        BadArgument: it is neither None nor a number of seconds from 0 to 60.
    """
    if rtt is not None:
        check_number(rtt, "rtt")
        if isinstance(rtt, bool) or not 0 <= rtt <= MAX_RTT:
            raise BadArgument(f"rtt must be from 0 to {MAX_RTT:g} seconds, not {rtt!r:.100}")


def check_outcome(failed: object, retry_after: Any) -> None:
    """Refuse what `release` cannot say of a dial.

    Raises:
        BadArgument: it is none of `OUTCOMES`, or no time that goes with it.
    """
    if failed is not None and failed not in OUTCOMES:
        raise BadArgument(f"failed must be one of {', '.join(OUTCOMES)}, not {failed!r:.100}")
    if retry_after is not None:
        check_number(retry_after, "retry_after")
        if failed is None or failed == "held":
            raise BadArgument("retry_after needs a dial that failed")
        if not 0 <= retry_after <= MAX_RETRY_AFTER:
            raise BadArgument(f"retry_after must be from 0 to {MAX_RETRY_AFTER:g} seconds")


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
        row: list[Any] = [proxy.name, proxy.group, proxy.generation, proxy.ttl]
        if proxy.terminating is not None or proxy.address is not None:
            if proxy.address and not is_address(proxy.address):
                raise BadArgument(f"{proxy.address!r:.100} is no address of {proxy.name!r:.100}")
            more = {"terminating": proxy.terminating, "address": proxy.address}
            row.append({key: value for key, value in more.items() if value is not None})
        rows.append(row)
    return rows


def check_wait(seconds: float | None, what: str) -> None:
    """Refuse what is neither a time to wait nor None.

    Raises:
        BadArgument: it is not a number of at least 0.
    """
    if seconds is not None:
        check_number(seconds, what)
        if not seconds >= 0:
            raise BadArgument(f"{what} must be a number of at least 0, or None")
