"""Teleport's JSON gossip payload, read into `Proxy` objects. Never does I/O.

The payload is what a connected proxy sends down its tunnel::

    {"proxies": [{"version": "v2", "metadata": {"name": "NAME"},
                  "gid": "GROUP", "ggen": GENERATION, "ttl": NANOSECONDS}]}

`gid`, `ggen` and `ttl` are left out when empty or zero. Unknown fields are ignored.
"""

from __future__ import annotations

import json
from typing import Any

from trackd_client.errors import BadPayload
from trackd_client.proxy import Proxy
from trackd_client.wire.checks import MAX_UINT64

_NANOSECONDS = 1_000_000_000


def parse_discovery(payload: bytes | bytearray | str) -> list[Proxy]:
    """Return the proxies that a discovery payload mentions, in its order.

    Args:
        payload: the JSON text.

    Raises:
        BadPayload: it is not JSON of that shape; the message says where.
    """
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise BadPayload(f"the discovery payload is not JSON: {error}") from None
    except TypeError:
        raise BadPayload("the discovery payload must be bytes or text") from None
    proxies = document.get("proxies") if isinstance(document, dict) else None
    if proxies is None and isinstance(document, dict):
        return []  # Teleport writes null for an empty list
    if not isinstance(proxies, list):
        raise BadPayload('the discovery payload must be an object with an array "proxies"')
    return [_proxy(entry, f"proxies[{i}]") for i, entry in enumerate(proxies)]


def _proxy(entry: Any, where: str) -> Proxy:
    if not isinstance(entry, dict):
        raise BadPayload(f"{where} must be an object")
    metadata = entry.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    if not isinstance(name, str) or not name:
        raise BadPayload(f"{where}.metadata.name must be a name")
    group = entry.get("gid")
    if group is not None and not isinstance(group, str):
        raise BadPayload(f"{where}.gid must be text")
    generation = _integer(entry.get("ggen"), f"{where}.ggen", 0, MAX_UINT64)
    ttl = _integer(entry.get("ttl"), f"{where}.ttl", -(2**63), 2**63 - 1)
    return Proxy(name, group or "", generation, ttl / _NANOSECONDS if ttl > 0 else None)


def _integer(value: Any, where: str, least: int, most: int) -> int:
    if value is None:
        return 0
    if type(value) is not int or not least <= value <= most:
        raise BadPayload(f"{where} must be an integer from {least} to {most}")
    return value
