"""What a daemon sent is read here: what is not as the protocol says is an error with a sentence."""

from __future__ import annotations

from collections.abc import Callable, Generator
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from trackd_client.errors import NoAnswer, TrackdError
from trackd_client.wire.errors import ProtocolError

P = ParamSpec("P")
T = TypeVar("T")

#: What reading raises when a field is missing, or is of another type than the protocol says.
_UNREADABLE: Final = (
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    ProtocolError,
)


def read(what: str, reader: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return what a function reads from something that a daemon sent.

    Args:
        what: what it is, for the error.
        reader: the function.
        args: for the function.
        kwargs: likewise.

    Raises:
        NoAnswer: it is not as the protocol says.
    """
    try:
        return reader(*args, **kwargs)
    except TrackdError:
        raise
    except _UNREADABLE as error:
        raise _unreadable(what, error) from error


def reads(
    steps: Callable[P, Generator[T, Any, None]],
) -> Callable[P, Generator[T, Any, None]]:
    """Let steps that read what a daemon sent end with `NoAnswer` when that cannot be read."""

    @wraps(steps)
    def checked(*args: P.args, **kwargs: P.kwargs) -> Generator[T, Any, None]:
        try:
            yield from steps(*args, **kwargs)
        except TrackdError:
            raise
        except _UNREADABLE as error:
            raise _unreadable("events or rows", error) from error

    return checked


def _unreadable(what: str, error: Exception) -> NoAnswer:
    return NoAnswer(
        f"the daemon sent {what} that cannot be read ({error!r:.100}); see which version it is"
        " with: trackctl status"
    )
