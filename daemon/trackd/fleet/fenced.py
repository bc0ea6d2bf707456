"""FencedWrites: transactions of the one process that leads, each done once or certainly not.

Each compares the create revision of the leader's key, so that none of a process that was replaced
is done; and the revision of the key `head`, which each sets again, so that one which was delayed
changes nothing when it arrives after its own repetition.

A call that was not answered may have happened. Then the same transaction is repeated until etcd
says that it is done now, or was done before, or that another process leads. Not to find it proves
nothing, since it may still be under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, TypeVar

from trackd.fleet.clock import Stamp
from trackd.fleet.etcd import (
    Ambiguous,
    Compacted,
    Etcd,
    EtcdError,
    Get,
    KeyValue,
    NoSpace,
    Operation,
    Put,
    RangeResult,
    Refused,
    TxnResult,
    create_revision_is,
    mod_revision_is,
)
from trackd.fleet.rows import Head
from trackd.storage.store import DeposedError, StoreError

#: Seconds between two tries: at first, and at most.
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 0.25
#: Seconds after which a transaction that may have happened, and whose repetitions are refused, is
#: left to the next leader, which sees.
_UNSURE_SECONDS: Final = 10.0


#: Seconds for which a read is tried.
_READ_SECONDS: Final = 10.0

_Result = TypeVar("_Result")


class Fence(NamedTuple):
    """What each write of a leader compares.

    Attributes:
        key: the leader's key.
        create_revision: at which this process created it.
    """

    key: bytes
    create_revision: int


class FencedWrites:
    """The writes of one leader.

    Attributes:
        revision: at which `head` was set last, as far as is known; 0 when there is none.
        found_done: how many writes were not answered, and turned out to have been done.
    """

    def __init__(
        self,
        etcd: Etcd,
        fence: Fence,
        head: bytes,
        leads: Callable[[], bool],
        stamp: Callable[[], Stamp],
    ) -> None:
        """Know nothing of `head`; whoever has read it sets `revision`.

        Args:
            etcd: the client.
            fence: of the leader.
            head: the key that every write sets.
            leads: returns whether this process still leads; asked before each repetition.
            stamp: returns the time for `head`.
        """
        self.revision = 0
        self._stamp = stamp
        self.found_done = 0
        self._etcd = etcd
        self._fence = fence
        self._head = head
        self._leads = leads

    def write(self, operations: Sequence[Operation], last_row: int) -> None:
        """Do some operations, and set `head`; all at once.

        Args:
            operations: Puts and Deletes; they do not overlap.
            last_row: the number of the last row of the journal after that.

        Raises:
            StoreError: nothing was done, nor will be.
            DeposedError: another process leads, or it cannot be found out what was done.
        """
        put = next((each for each in operations if isinstance(each, Put)), None)
        head = Put(self._head, Head(last_row, self._stamp()).pack())
        wanted = put or head
        compares = [
            create_revision_is(*self._fence),
            mod_revision_is(self._head, self.revision),
        ]
        look = [Get(self._fence.key), Get(self._head), Get(wanted.key)]
        unsure: float | None = None  # since when a try may have happened
        problem: EtcdError
        pause = _FIRST_PAUSE
        while True:
            try:
                result = self._etcd.txn(compares, [*operations, head], look)
            except NoSpace as error:
                if self._was_done(wanted):
                    return
                problem, refused = error, True
            except Refused as error:
                problem, refused = error, True
            except Ambiguous as error:
                unsure = unsure or time.monotonic()
                problem, refused = error, False
            else:
                if result.succeeded:
                    self.revision = result.revision
                else:
                    self._settle(result, wanted)
                return
            if unsure is None:
                raise StoreError(str(problem))
            if refused and time.monotonic() > unsure + _UNSURE_SECONDS:
                raise DeposedError(f"it is not known whether the last write was done: {problem}")
            if not self._leads():
                raise DeposedError(f"this process does not lead any more: {problem}")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def check_leader(self, found: KeyValue | None) -> None:
        """Check what stands under the leader's key: DeposedError when it is not this process."""
        if found is None or found.create_revision != self._fence.create_revision:
            raise DeposedError("another process leads")

    def _settle(self, found: TxnResult, wanted: Put) -> None:
        """Take in why a transaction was not done: since it was done before; else raise."""
        leader, head, put = (each.kvs for each in found.responses if isinstance(each, RangeResult))
        self.check_leader(leader[0] if leader else None)
        if not head or head[0].mod_revision == self.revision or not put:
            raise DeposedError("etcd contradicts itself about the last write")
        if put[0].value != wanted.value:
            raise DeposedError("another process writes in the name of this one")
        self.revision = head[0].mod_revision
        self.found_done += 1

    def _was_done(self, wanted: Put) -> bool:
        """Return whether a transaction was done that etcd has answered as out of space."""
        look = [Get(self._fence.key), Get(self._head), Get(wanted.key)]
        try:
            result = read(lambda: self._etcd.txn([], look), self._leads)
        except StoreError as error:
            raise DeposedError(
                f"it is not known whether the last write was done: {error}"
            ) from None
        _, head, _ = (each.kvs for each in result.responses if isinstance(each, RangeResult))
        if (head[0].mod_revision if head else 0) == self.revision:
            return False
        self._settle(result, wanted)
        return True


def read(ask: Callable[[], _Result], leads: Callable[[], bool]) -> _Result:
    """Return what a read finds; while etcd does not answer, try again.

    Args:
        ask: reads.
        leads: returns whether this process still leads; asked before each repetition.

    Raises:
        Compacted: the revision that was asked for is gone.
        StoreError: etcd does not answer.
        DeposedError: another process leads.
    """
    until = time.monotonic() + _READ_SECONDS
    pause = _FIRST_PAUSE
    while True:
        try:
            return ask()
        except Compacted:
            raise
        except EtcdError as error:
            if not leads():
                raise DeposedError(f"this process does not lead any more: {error}") from None
            if time.monotonic() > until:
                raise StoreError(f"etcd does not answer: {error}") from None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
