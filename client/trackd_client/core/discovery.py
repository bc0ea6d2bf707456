"""Teleport's JSON gossip payload, read into `Proxy` objects. Never does I/O.

The payload is what a connected proxy sends down its tunnel::

    {"proxies": [{"version": "v2", "metadata": {"name": "NAME"},
                  "gid": "GROUP", "ggen": GENERATION, "ttl": NANOSECONDS,
                  "trackd": {"terminating": true, "address": "HOST:PORT"}}]}

`gid`, `ggen` and `ttl` are left out when empty or zero. `trackd` is not Teleport's: it holds what
else `Proxy` has, and a value in it that is not allowed counts as left out. Unknown fields are
ignored. Keys may be written in any case, and null counts as left out, as in Go's decoder, which
the proxies use. An entry that no proxy can be is skipped, and the others count.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from trackd_client.errors import BadPayload
from trackd_client.proxy import Proxy
from trackd_client.wire.checks import (
    MAX_UINT64,
    check_count,
    check_name,
    check_seconds,
    check_text,
    more_of,
)
from trackd_client.wire.errors import ProtocolError
from trackd_client.wire.protocol import Limits

log = logging.getLogger("trackd_client")

_NANOSECONDS: Final = 1_000_000_000
#: Bytes that a row of `track_expected` takes at most beside its name and its group.
_ROW_BYTES: Final = 32
#: Bytes that the map of a row takes at most.
_MORE_BYTES: Final = 16
#: Bytes that an address takes at most beside itself, with a map of its own.
_ADDRESS_BYTES: Final = 12
#: Bytes of a message beside its rows, and for each range of numbers that are done.
_MESSAGE_BYTES: Final = 1024
_RANGE_BYTES: Final = 18

#: What gossip may be given as: proxies, or Teleport's JSON.
Gossip = Proxy | bytes | bytearray | str


class Reading(NamedTuple):
    """What was read.

    Attributes:
        proxies: that are mentioned, in their order.
        skipped: a sentence for each entry that no proxy can be.
    """

    proxies: list[Proxy]
    skipped: list[str]


def parse_discovery(payload: bytes | bytearray | str) -> list[Proxy]:
    """Return the proxies that a discovery payload mentions, in its order.

    An entry that no proxy can be is skipped; a warning says how many were, and why.

    Args:
        payload: the JSON text.

    Raises:
        BadPayload: the payload is not a JSON object with an array "proxies".
    """
    reading = _within(_read(payload), Limits())
    if reading.skipped:
        log.warning("%s", sentence_of(reading.skipped))
    return reading.proxies


def read_gossip(gossip: Iterable[Gossip]) -> Reading:
    """Return what proxies and payloads mention; `messages` checks it against the limits.

    Raises:
        BadPayload: a payload is not a JSON object with an array "proxies".
    """
    found = Reading([], [])
    for item in gossip:
        reading = Reading([item], []) if isinstance(item, Proxy) else _read(item)
        found.proxies.extend(reading.proxies)
        found.skipped.extend(reading.skipped)
    return found


def messages(reading: Reading, limits: Limits) -> tuple[list[list[Proxy]], list[str]]:
    """Return proxies in as few messages as a daemon takes them in, and why some are in none.

    Args:
        reading: what to send.
        limits: the daemon's.
    """
    proxies, skipped = _within(reading, limits)
    return list(_split(proxies, limits)) or [[]], skipped


def sentence_of(skipped: list[str]) -> str:
    """Return what a log line says of entries that were skipped."""
    return f"gossip: {len(skipped)} of its entries skipped, the first because {skipped[0]}"


def _within(reading: Reading, limits: Limits) -> Reading:
    """Return a reading without what the daemon would refuse."""
    kept = Reading([], list(reading.skipped))
    for proxy in reading.proxies:
        try:
            check_name(proxy.name, "the name of a proxy", limits.max_name)
            check_text(proxy.group, f"the group of {proxy.name!r}", limits.max_name)
            check_count(proxy.generation, f"the generation of {proxy.name!r}")
            if proxy.ttl is not None:
                check_seconds(proxy.ttl, f"the ttl of {proxy.name!r}")
        except ProtocolError as error:
            kept.skipped.append(str(error))
        else:
            kept.proxies.append(proxy)
    return kept


def _split(proxies: list[Proxy], limits: Limits) -> Iterator[list[Proxy]]:
    room = limits.max_frame - _MESSAGE_BYTES - _RANGE_BYTES * limits.max_outstanding
    room = max(room, limits.max_frame // 2)
    part: list[Proxy] = []
    size = 0
    for proxy in proxies:
        row = _ROW_BYTES + len(proxy.name.encode()) + len(proxy.group.encode())
        row += _MORE_BYTES * (proxy.terminating is not None)
        row += 0 if proxy.address is None else _ADDRESS_BYTES + len(proxy.address)
        if part and (size + row > room or len(part) >= limits.max_proxies):
            yield part
            part, size = [], 0
        part.append(proxy)
        size += row
    if part:
        yield part


def _read(payload: Any) -> Reading:
    try:
        document = json.loads(payload, object_pairs_hook=_fold)
    except (ValueError, RecursionError) as error:
        raise BadPayload(f"the discovery payload is not JSON: {error}") from None
    except TypeError:
        raise BadPayload("the discovery payload must be bytes or text") from None
    if not isinstance(document, dict) or "proxies" not in document:
        raise BadPayload('the discovery payload must be an object with an array "proxies"')
    entries = document["proxies"]
    if entries is None:
        entries = []  # Go writes null for an empty list
    if not isinstance(entries, list):
        raise BadPayload('the discovery payload must be an object with an array "proxies"')
    reading = Reading([], [])
    for i, entry in enumerate(entries):
        try:
            reading.proxies.append(_proxy(entry, f"proxies[{i}]"))
        except BadPayload as error:
            reading.skipped.append(str(error))
    return reading


def _fold(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object with its keys in lower case, as Go's decoder would fill a struct from it.

    Of a key that comes twice the later one counts, null changes nothing, and objects are merged.
    """
    folded: dict[str, Any] = {}
    for key, value in pairs:
        name = key.casefold()
        before = folded.get(name)
        if value is None:
            folded.setdefault(name, None)
        elif isinstance(before, dict) and isinstance(value, dict):
            folded[name] = {**before, **{k: v for k, v in value.items() if v is not None}}
        else:
            folded[name] = value
    return folded


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
    seconds = ttl / _NANOSECONDS if ttl > 0 else None
    more = entry.get("trackd")
    known = more_of([name, group, generation, ttl, more])
    return Proxy(
        name, group or "", generation, seconds, known.get("terminating"), known.get("address")
    )


def _integer(value: Any, where: str, least: int, most: int) -> int:
    if value is None:
        return 0
    if type(value) is not int or not least <= value <= most:
        raise BadPayload(f"{where} must be an integer from {least} to {most}")
    return value
