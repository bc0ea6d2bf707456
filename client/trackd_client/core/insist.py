"""Acts that must not be left undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

#: Times that `insist` tries.
_TRIES: Final = 5


def insist(act: Callable[[], object]) -> None:
    """Do what must not be left undone, again when an exception interrupts it.

    A signal handler can raise an exception at any point of the main thread, also within the code
    that cleans up after the one before. What is done here may be done twice without harm.

    Raises:
        BaseException: the last exception, when each of several tries met one.
    """
    for _ in range(_TRIES):
        try:
            act()
        except BaseException as error:  # noqa: BLE001 - raised below, unless a later try succeeds
            interruption = error
        else:
            return
    raise interruption
