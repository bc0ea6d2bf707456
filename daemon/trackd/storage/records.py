"""The types of what the store keeps: the key of a row, a row, a record of the journal."""

from __future__ import annotations

from typing import Any, NamedTuple

#: What a thing is: its kind and its key. Keys are msgpack values: text, bytes, integers.
Key = tuple[str, Any]

Record = list[Any]


class StoredRow(NamedTuple):
    """One value of the checkpoint."""

    kind: str
    key: Any
    value: Any
