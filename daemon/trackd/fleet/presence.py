"""Presence: a candidate shows that it is there, and learns the fleet time while it stands by.

For as long as the process lives, there is a key `candidates/HOST` with a lease of its own: it is
there whether the candidate leads or stands by, and is gone some seconds after the process. Its
value is JSON: the version of trackd, the format of the state that it reads and writes, and since
when it is there.

All of it is done on one thread, in rounds. A round asks etcd three times and, while the candidate
stands by, waits for one write of the leader: enough for the fleet clock, which goes on by itself.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from trackd.fleet.clock import BEGINNING, FleetClock, Stamp
from trackd.fleet.etcd import Etcd, EtcdError, Get, KeyValue, RangeResult, Watch
from trackd.fleet.rows import FORMAT, Keys, read_head
from trackd_client import __version__
from trackd_client.core.limited_log import LimitedLog
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd.fleet")

#: Rounds that may fail before the key is gone.
_LEASE_ROUNDS: Final = 3
#: Seconds until the next round after one that failed.
_AGAIN_SECONDS: Final = 0.5


class Present(NamedTuple):
    """What the key of a candidate holds.

    Attributes:
        host: its host.
        version: of its trackd.
        format: of the state, that it reads and writes; it reads older ones too.
        since: Unix time since when it is there.
    """

    host: str
    version: str
    format: int
    since: float


def read_present(kv: KeyValue) -> Present:
    """Return what the key of a candidate holds; of another version, what is known of it."""
    host = kv.key.rpartition(b"/")[2].decode(errors="replace")
    try:
        found: Any = json.loads(kv.value)
        return Present(host, str(found["version"]), int(found["format"]), float(found["since"]))
    except (ValueError, TypeError, LookupError):
        return Present(host, "", 0, 0.0)


class Presence:
    """The presence of this candidate. Use it in a `with` block; the thread lasts as long."""

    def __init__(self, etcd: Etcd, prefix: bytes, host: str, seconds: float) -> None:
        """Prepare it.

        Args:
            etcd: a client of its own, which is closed at the end.
            prefix: of all keys of the fleet, with its slash.
            host: the name of this host.
            seconds: that a round takes.
        """
        keys = Keys(prefix)
        self._etcd = etcd
        self._key = keys.candidate(host)
        self._head = keys.head
        self._seconds = seconds
        self._value = json.dumps(
            {"version": __version__, "format": FORMAT, "since": time.time()}
        ).encode()
        self._lease = 0
        self._clock: FleetClock | None = None
        self._is_hot = False
        self._watch: Watch | None = None
        self._leads = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()  # of the clock: when the candidate leads, its owner changes
        self._limited = LimitedLog(log)
        self._thread = threading.Thread(target=self._run, name="presence", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._cancel_watch()
        self._thread.join()
        with contextlib.suppress(EtcdError):  # then the lease ends by itself
            if self._lease:
                self._etcd.revoke(self._lease)
        self._etcd.close()

    def lead(self, last: Stamp) -> FleetClock:
        """Return the fleet clock of this host, which leads from now on.

        Args:
            last: of the last write of the leader before.
        """
        with self._lock:
            self._leads.set()
            clock, self._clock = self._clock, None
        self._cancel_watch()
        if clock is None:
            return FleetClock(last, boottime(), time.time())
        clock.catch_up(last, boottime())
        return clock

    def _run(self) -> None:
        while not self._ended.is_set():
            began = boottime()
            try:
                found = self._stay()
                if not self._leads.is_set():
                    self._follow(found)
            except EtcdError as error:
                self._limited.warning("presence", "etcd is not shown that this is here: %s", error)
                self._ended.wait(_AGAIN_SECONDS)
            else:
                self._ended.wait(max(0.0, began + self._seconds - boottime()))

    def _stay(self) -> RangeResult:
        """See to it that the key is there; return what `head` is."""
        alive = self._lease and self._etcd.keepalive(self._lease) > 0
        result = self._etcd.txn([], [Get(self._head), Get(self._key)])
        head, own = (each for each in result.responses if isinstance(each, RangeResult))
        if not alive or not own.kvs or own.kvs[0].lease != self._lease:
            self._lease = self._etcd.grant(max(2, round(_LEASE_ROUNDS * self._seconds)))
            self._etcd.put(self._key, self._value, lease=self._lease)
        return head._replace(revision=result.revision)

    def _follow(self, head: RangeResult) -> None:
        """Take in the time of the next write of the leader, if there is one within a round."""
        self._note(_stamp_of(head.kvs[0]) if head.kvs else BEGINNING, arrived=False)
        with self._etcd.watch(self._head, None, head.revision + 1, seconds=self._seconds) as watch:
            self._watch = watch
            if not self._ended.is_set() and not self._leads.is_set():
                change = next(watch, None)
                if change is not None and not change.deleted:
                    self._note(_stamp_of(change.kv), arrived=True)
            self._watch = None

    def _note(self, stamp: Stamp | None, *, arrived: bool) -> None:
        """Take in the time of a write, which has arrived just now or was found."""
        with self._lock:
            if stamp is None or self._leads.is_set():
                return
            if arrived and self._clock is not None:
                self._clock.follow(stamp, boottime())
                if not self._is_hot:
                    self._is_hot = True
                    log.debug("follows the fleet clock")
            elif self._clock is not None:
                self._clock.catch_up(stamp, boottime())
            else:
                self._clock = FleetClock(stamp, boottime(), time.time())

    def _cancel_watch(self) -> None:
        if (watch := self._watch) is not None:
            watch.cancel()


def _stamp_of(head: KeyValue) -> Stamp | None:
    """Return the time of the last write; None when `head` makes no sense, as who leads will see."""
    try:
        return read_head(head.value).stamp
    except ValueError:
        return None
