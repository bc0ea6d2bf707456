"""When the sessions of a host that is cut off end, also after its relay has started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from trackd.fleet.contact import EARLY, Contact

Maker = Callable[[str], Contact]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Maker]:
    """Makes what the next relay has, of a boot."""
    with ExitStack() as stack:

        def make(boot: str) -> Contact:
            made = Contact(tmp_path / "contact", boot)
            stack.callback(made.close)
            return made

        yield make


def test_sessions_end_a_share_of_the_ttl_after_what_the_leader_has_heard_was_sent(
    relay: Maker,
) -> None:
    contact = relay("boot")
    assert not contact.ends, "no leader was ever reached"
    assert not contact.take(100.0, 10.0)
    assert contact.ends == 100.0 + EARLY * 10.0
    contact.take(103.0)
    contact.take(101.0)
    assert contact.ends == 103.0 + EARLY * 10.0
    contact.take(104.0, 20.0)
    assert contact.ends == 104.0 + EARLY * 20.0


def test_only_a_word_that_was_sent_after_the_end_says_that_the_leader_knows(relay: Maker) -> None:
    contact = relay("boot")
    contact.take(100.0, 10.0)
    contact.end(108.0)
    assert not contact.ends
    assert not contact.take(107.9, 10.0)
    assert contact.ended == 108.0
    assert relay("boot").ends == 108.0, "nor does it let the next relay wait"
    assert contact.take(108.0)
    assert contact.ends == 116.0
    assert not contact.take(109.0)


def test_the_next_relay_of_the_boot_goes_on_counting(relay: Maker) -> None:
    relay("boot").take(100.25, 12.5)
    assert relay("boot").ends == 100.25 + EARLY * 12.5
    relay("boot").take(1e6 + 1 / 3, 7.0)
    assert relay("boot").ends == 1e6 + 1 / 3 + EARLY * 7.0
    relay("boot").take(1e6 + 1, 7.0)
    assert relay("another").ends is None


@pytest.mark.parametrize("noted", [b"", b"boot", b"boot 1", b"boot 1 x", b"\xff 1 2", b"a b c d"])
def test_what_cannot_be_read_is_as_good_as_nothing(
    relay: Maker, tmp_path: Path, noted: bytes
) -> None:
    (tmp_path / "contact").write_bytes(noted)
    contact = relay("boot")
    assert not contact.ends
    contact.take(5.0, 10.0)
    assert relay("boot").ends == 13.0
