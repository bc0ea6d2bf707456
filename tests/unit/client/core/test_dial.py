"""What a dial says by how it ends, and whether it is a function of tasks."""

from __future__ import annotations

import ssl
from functools import partial

import pytest

from trackd_client.core.dial import is_async, outcome_of
from trackd_client.errors import DaemonAbsent, DialFailed
from trackd_client.wire.requests import MAX_RETRY_AFTER


@pytest.mark.rule(17)
@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (DialFailed("tls"), ("tls", None)),
        (DialFailed("refused", retry_after=2.0), ("refused", 2.0)),
        (DialFailed("refused", retry_after=-1.0), ("refused", 0.0)),
        (DialFailed("refused", retry_after=1e9), ("refused", MAX_RETRY_AFTER)),
        (DaemonAbsent("gone"), None),
        (ssl.SSLError("no certificate"), ("tls", None)),
        (TimeoutError(), ("timeout", None)),
        (ConnectionRefusedError(), ("refused", None)),
        (ValueError("a mistake of the dial"), ("other", None)),
        (None, ("other", None)),
    ],
)
def test_an_end_says_why_a_dial_failed_unless_the_daemon_was_the_trouble(
    error: BaseException | None, outcome: tuple[str, float | None] | None
) -> None:
    assert outcome_of(error) == outcome


async def _coroutine(lease: object) -> None:
    """Be a dial of tasks."""


class _Callable:
    async def __call__(self, lease: object) -> None:
        """Be a dial of tasks."""


def test_an_async_function_is_seen_through_what_wraps_it() -> None:
    assert all(map(is_async, (_coroutine, partial(_coroutine, 1), _Callable())))
    assert not any(map(is_async, (print, partial(print), lambda: _coroutine(1), _Callable)))
