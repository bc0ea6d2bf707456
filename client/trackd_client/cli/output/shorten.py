"""Names made narrower for a table, so that no two of them look the same."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import Final

from rich.cells import cell_len, set_cell_size

#: Characters of its beginning that a name may keep when only a part further on tells it apart.
_HEADS: Final = (1, 2)


def measure(text: str) -> int:
    """Return how many columns of a terminal a text takes."""
    return len(text) if text.isascii() else cell_len(text)


def shorten(texts: Sequence[str], width: int) -> dict[str, str]:
    """Return how each text of a column looks: whole where it fits, and different from all others.

    Args:
        texts: all of the column.
        width: of the column, in columns of a terminal.
    """
    looks = {text: text.strip() for text in texts if measure(text) <= width}
    looks |= _cut_apart([text for text in texts if measure(text) > width], width)
    counts = Counter(looks.values())
    used = set(looks.values())
    numbers = itertools.count(1)
    for text, look in looks.items():
        if counts[look] > 1 and look != text:
            looks[text] = next(
                each for each in _cuts(text, look, width, numbers) if each not in used
            )
            used.add(looks[text])
    return looks


def cut(text: str, width: int, prefix: int, suffix: int) -> str:
    """Return a text cut to a width, so that it shows where it differs from others.

    Args:
        text: is wider than that.
        width: in columns of a terminal.
        prefix: characters that all of them begin with; they are cut second.
        suffix: characters that all of them end with; they are cut first.
    """
    body = text[: len(text) - suffix]
    if not text.isascii() or (not suffix and not prefix):
        return f"{set_cell_size(text, width - 1)}…"
    if len(body) + 1 <= width:
        return f"{body}…"
    end = "…" if suffix else ""
    room = width - 1 - len(end)
    if len(body) - room <= prefix:
        return f"…{body[len(body) - room :]}{end}"
    return f"…{body[prefix : prefix + width - 2]}…"


def _cut_apart(texts: Sequence[str], width: int) -> dict[str, str]:
    """Return texts cut to a width; those that look the same then are cut as a group of their own.

    Names of several kinds have little in common, but those of one kind have.
    """
    looks: dict[str, str] = {}
    groups = [texts]
    while groups:
        group = groups.pop()
        prefix, suffix = _find_shared(group)
        alike = defaultdict(list)
        for text in dict.fromkeys(group):
            looks[text] = cut(text, width, prefix, suffix).strip()
            alike[looks[text]].append(text)
        groups += [each for each in alike.values() if 1 < len(each) < len(group)]
    return looks


def _cuts(text: str, look: str, width: int, numbers: Iterator[int]) -> Iterator[str]:
    """Yield ways to cut a text: its beginning with a later part, or with a number in the end.

    Args:
        text: what to cut.
        look: a cut of it, which another text has too; its part is tried first.
        width: in columns of a terminal.
        numbers: those that no text has yet.
    """
    for head in _HEADS:
        part, end = look.strip("…"), "…" * look.endswith("…")
        if look.startswith("…"):
            room = width - head - 1 - len(end)
            yield set_cell_size(f"{text[:head]}…{part[-room:]}{end}", width).strip()
    for head in _HEADS:
        room = width - head - 2
        for start in range(len(text) - room, head, -1):
            end = "…" * (start + room < len(text))
            yield set_cell_size(f"{text[:head]}…{text[start : start + room]}{end}", width).strip()
    for number in numbers:
        mark = f"~{number}"
        yield f"{set_cell_size(text, width - len(mark))}{mark}".strip()


def _find_shared(texts: Sequence[str]) -> tuple[int, int]:
    """Return how many characters all texts begin with, and end with; none of a single text."""
    if len(texts) < 2:
        return 0, 0
    suffix = _count_shared([text[::-1] for text in texts])
    least = min(map(len, texts))
    if suffix == least:  # they differ at the front only, or are equal
        suffix = 0
    prefix = _count_shared([text[: len(text) - suffix] for text in texts])
    return prefix, suffix


def _count_shared(texts: Sequence[str]) -> int:
    """Return how many characters all texts begin with."""
    first, last = min(texts), max(texts)
    pairs = zip(first, last, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(first), len(last)))
