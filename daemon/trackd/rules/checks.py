"""Checks of the arguments of the tracker. A wrong one is a ValueError that names it.

The checks are strict: True and 1.0 equal 1, and would pass for a lease or a generation. They look
at types and ranges only, never at whether a lease exists or a name is tracked.
"""

# ruff: noqa: TRY004 - outside checks rely on ValueError for wrong types too

from collections.abc import Iterable, Sequence
from typing import Any

from trackd_client.proxy import Proxy
from trackd_client.wire.checks import MAX_UINT64, is_address, is_seconds

MAX_GENERATION = MAX_UINT64


def check_str(value: Any, what: str) -> None:
    """Raise ValueError unless the value is a str."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be a str, not {value!r}")


def check_int(value: Any, what: str) -> None:
    """Raise ValueError unless the value is an int; a bool is refused."""
    if type(value) is not int:
        raise ValueError(f"{what} must be an int, not {value!r}")


def check_seconds(value: Any, what: str) -> None:
    """Raise ValueError unless the value is a finite int or float."""
    if not is_seconds(value):
        raise ValueError(f"{what} must be a finite number of seconds, not {value!r}")


def check_principals(principals: Any) -> None:
    """Raise ValueError unless the value is a sequence of str; a single str is refused."""
    if not isinstance(principals, (list, tuple)) and (
        not isinstance(principals, Sequence) or isinstance(principals, (str, bytes, bytearray))
    ):
        raise ValueError(f"principals must be a sequence of str, not {principals!r}")
    for principal in principals:
        if not isinstance(principal, str):
            raise ValueError(f"principals must hold str, not {principal!r}")


def check_proxy(name: Any, group: Any, generation: Any, ttl: Any) -> None:
    """Raise ValueError when a field of a proxy is wrong."""
    if (
        isinstance(name, str)
        and isinstance(group, str)
        and type(generation) is int
        and 0 <= generation <= MAX_GENERATION
        and (ttl is None or is_seconds(ttl))
    ):
        return
    check_str(name, "a proxy's name")
    check_str(group, f"the group of proxy {name!r}")
    check_int(generation, f"the generation of proxy {name!r}")
    if ttl is not None:
        check_seconds(ttl, f"the ttl of proxy {name!r}")
    raise ValueError(f"the generation of proxy {name!r} must be 0 to 2**64-1, not {generation}")


def check_proxies(proxies: Any) -> list[Proxy]:
    """Return the proxies of an iterable; raise ValueError when it holds anything else."""
    if not isinstance(proxies, Iterable):
        raise ValueError(f"proxies must be an iterable of Proxy, not {proxies!r}")
    checked = []
    for proxy in proxies:
        if not isinstance(proxy, Proxy):
            raise ValueError(f"proxies must hold Proxy, not {proxy!r}")
        check_proxy(proxy.name, proxy.group, proxy.generation, proxy.ttl)
        if proxy.terminating is not None and type(proxy.terminating) is not bool:
            raise ValueError(
                f"terminating of proxy {proxy.name!r} must be a bool, not {proxy.terminating!r}"
            )
        if proxy.address not in (None, "") and not is_address(proxy.address):
            raise ValueError(f"{proxy.address!r} is no address of proxy {proxy.name!r}")
        checked.append(proxy)
    return checked
