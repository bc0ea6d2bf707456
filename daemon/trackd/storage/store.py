"""What the writer needs of a store, and the errors of every store.

The changes of one batch are one row of a *journal*. Beside it stands a *checkpoint*: the state as
it was after one row of the journal, the base, as one row for each thing (a session, a lease, a
mention). The checkpoint and the rows after its base give the state.

A store does not know what its rows mean. `trackd.storage.sqlite` keeps them in a file of the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

#: A thing of the checkpoint: its kind, and its key, which msgpack can pack.
Key = tuple[str, Any]
#: Returns the present value of a key, or None when the thing is gone.
RowOf = Callable[[Key], Any]


class StoreError(Exception):
    """The store cannot be written or read now; a later try may succeed."""


class DamagedError(Exception):
    """What is stored is not trackd's, or cannot be read."""


class NewerError(StoreError):
    """What is stored was written by a newer trackd."""


class DeposedError(Exception):
    """Another process has the store now, or this one cannot find out what it has stored.

    This process must end at once and answer nothing: whether its last batch has happened is seen by
    the process that reads the store next.
    """


class Store(Protocol):
    """An open store. Only one thread uses it.

    Any call that reads or writes may raise `DeposedError`, when the store is shared by several
    processes of which one may write.

    Attributes:
        row_of: returns the present value of a key; set it before `touch` and `step`.
    """

    row_of: RowOf

    def begin_reading(self) -> None:
        """Forget the checkpoint under way, and look at what is stored; before `rows`.

        What is read afterwards is what was stored at this moment. It has every batch whose `append`
        returned, and none whose `append` raised a `StoreError` or a `DamagedError`.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: what is stored cannot be read.
        """

    def rows(self, kind: str) -> Iterator[tuple[Any, Any]]:
        """Yield the checkpoint's rows of a kind, key and value, in the order of the packed keys.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: what is stored cannot be read.
        """

    def batches(self) -> Iterator[bytes]:
        """Yield the journal's batches after the base, oldest first; once, after all `rows`.

        Only when it has ended may `append` go on from there.

        Raises:
            StoreError: reading failed; a later try may succeed.
            DamagedError: what is stored cannot be read, or a batch is missing.
        """

    def append(self, changes: bytes) -> None:
        """Store the changes of one batch, all of them or none.

        When it returns, the next process that reads the store finds them, whatever happens to this
        one. The errors are definite: an attempt that may have happened is looked up before it
        returns or raises.

        Raises:
            StoreError: nothing was stored, nor will be; a later try may succeed.
            DamagedError: nothing was stored, and what is stored is damaged.
            DeposedError: nobody can say here whether the batch was stored.
        """

    def check_owner(self) -> None:
        """Check that this process still has the store; before what it says without storing.

        Raises:
            DeposedError: another process may have it now.
        """

    def note_done(self, token: bytes, ranges: Sequence[int]) -> bool:
        """Note which requests a session is done with, where that costs less than a batch.

        Args:
            token: of the session.
            ranges: the numbers, as in `Done`.

        Returns:
            Whether the next process that reads the store finds it, whatever happens to this one.
            If not, it has to be stored by a change.
        """

    def noted_done(self) -> Mapping[bytes, Sequence[int]]:
        """Return what `note_done` has noted, by token."""

    def forget_done(self, token: bytes) -> None:
        """Forget the note of a session that has ended, if there is one."""

    def touch(self, keys: Iterable[Key]) -> None:
        """Note that the things of these keys are about to be edited.

        It stores nothing, and never fails.
        """

    @property
    def has_work(self) -> bool:
        """Whether a step would do something: `step` is worth a call, now or in an idle moment."""

    def step(self) -> None:
        """Take a step of the checkpoint. Call it between batches, when all changes are stored.

        Raises:
            StoreError: the step was not done; the next one tries again. Nothing stored is lost.
        """

    def size(self) -> int | None:
        """Return the bytes that the store takes; None when it keeps nothing."""

    def set_aside(self, why: str) -> None:
        """Put away what is stored, since it cannot be used, and begin empty.

        Args:
            why: it cannot be used, for people.

        Raises:
            StoreError: that is not possible, or not allowed; nothing has changed.
        """

    def restore_files(self) -> None:
        """Create the files of the store again, which were removed; the state is not lost with them.

        Raises:
            StoreError: that is not possible now. Nothing is lost, and nothing can be stored before
                a later call succeeds.
        """

    def close(self) -> None:
        """Close the store; what was stored stays."""


#: Opens the store of a writer, in the writer's thread; raises what `begin_reading` raises.
OpenStore = Callable[[], Store]
