"""A candidate: it stands by, leads for one term, and knows at each moment whether it still leads.

The key `leader` of a fleet exists while there is a leader, and ends with its lease. Its create
revision is the fence: each write of a term is a transaction that compares it, so that nothing of
a former leader is ever admitted. `Term.is_valid` is for what needs no write.

Nothing here reads or writes the state of the fleet.
"""

from __future__ import annotations

import logging
import os
import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from trackd.fleet.etcd import (
    Etcd,
    EtcdError,
    Get,
    Put,
    RangeResult,
    Watch,
    create_revision_is,
)
from trackd.fleet.term import OVER, LeaderKey, extend, fence_of, next_keepalive
from trackd.host.lock import Lock, acquire_lock
from trackd.host.logs import fields
from trackd.host.own_files import open_own_file
from trackd_client.core.limited_log import LimitedLog
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd")

#: Seconds after which a candidate that could not ask etcd asks again.
_AGAIN_SECONDS: Final = 0.5
_MAX_LEASE: Final = 2**62


class Term:
    """One time of leading. All of it may be used from any thread.

    Attributes:
        key: the key `leader`.
        fence: its create revision, which each write of this term compares.
        cluster_id: the etcd that elected it; another one is a restored backup.
    """

    def __init__(self, key: bytes, fence: int, cluster_id: int, valid_until: float) -> None:
        self.key = key
        self.fence = fence
        self.cluster_id = cluster_id
        self._valid_until = valid_until
        self._lock = threading.Lock()

    @property
    def valid_until(self) -> float:
        """Until when nobody else can lead, in seconds of CLOCK_BOOTTIME; `OVER` once it is over."""
        return self._valid_until

    def is_valid(self, margin: float = 0.0) -> bool:
        """Return whether nobody else can lead now, and for `margin` more seconds."""
        return boottime() < self._valid_until - margin

    def extend(self, ttl: float, sent: float) -> None:
        """Note an acknowledged keepalive: see `trackd.fleet.term.extend`."""
        with self._lock:
            self._valid_until = extend(self._valid_until, ttl, sent, boottime())

    def end(self) -> None:
        """Let it be over, for ever."""
        with self._lock:
            self._valid_until = OVER


class Candidate:
    """One host that would lead a fleet. Use it in a `with` block, and for one term.

    It holds a lock on its host, so that there is one candidate for each fleet and host, and keeps
    the id of its lease in a file, so that the next one on this host can end a lease at once that
    a killed one has left.
    """

    def __init__(
        self,
        connect: Callable[[float], Etcd],
        prefix: bytes,
        value: bytes,
        *,
        ttl: int,
        directory: Path,
        name: str,
    ) -> None:
        """Prepare it; `with` takes the lock.

        Args:
            connect: makes a client of etcd with this timeout, in seconds.
            prefix: of all keys of the fleet, with its slash.
            value: what the key `leader` holds: how this leader is reached.
            ttl: seconds after which a leader that is not heard of is replaced; at least 2.
            directory: where the lock and the id of the lease are, the same for all candidates of
                this host, and gone after a boot.
            name: of the fleet, cluster and ring, as part of a file's name.
        """
        self._key = prefix + b"leader"
        self._value = value
        self._ttl = ttl
        self._name = name
        self._lock_path = directory / f"{name}.lead.lock"
        self._lease_path = directory / f"{name}.lease"
        self._etcd = connect(ttl / 3)
        # A client of its own is a connection of its own: no commit holds up a keepalive.
        self._keeper_etcd = connect(ttl / 5)
        self._lock: Lock | None = None
        self._lease = 0
        self._term: Term | None = None
        self._threads: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._over = threading.Event()
        self._watch: Watch | None = None
        self._known_fence = 0
        self._limited = LimitedLog(log)  # while etcd is away, each try fails

    def __enter__(self) -> Self:
        try:
            self._lock = acquire_lock(self._lock_path, f"the fleet {self._name}", self._name)
            if lease := self._read_lease():
                self._revoke(lease)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.step_down()
        self._close()

    def campaign(self) -> Term | None:
        """Stand by until there is no leader, and become it.

        Returns:
            The term, which is kept alive until it is over or `step_down`; None after `stop`.
        """
        while not self._stopped.is_set():
            try:
                found = self._etcd.range(self._key)
                if found.kvs:
                    self._stand_by(found)
                elif (term := self._try()) is not None:
                    self._lead(term)
                    log.info("leading", extra=fields(fence=term.fence))
                    return term
            except EtcdError as error:
                self._limited.warning("ask", "etcd cannot be asked who leads: %s", error)
                self._stopped.wait(_AGAIN_SECONDS)
        return None

    def stop(self) -> None:
        """Let `campaign` return soon, from any thread. A term goes on until `step_down`."""
        self._stopped.set()
        if self._term is None:
            self._cancel_watch()

    def step_down(self) -> None:
        """End the term and its lease, so that another candidate leads at once.

        Call it after the last write and reply of the term. A second call does nothing.
        """
        self._stopped.set()
        self._over.set()
        if self._term is not None:
            self._term.end()
        self._cancel_watch()
        for thread in self._threads:
            thread.join()
        if self._lease:
            self._revoke(self._lease)
            self._lease = 0

    def _close(self) -> None:
        self._etcd.close()
        self._keeper_etcd.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _try(self) -> Term | None:
        """Grant a lease and create `leader` with it; None when another was faster."""
        lease = secrets.randbelow(_MAX_LEASE) + 1
        # Before it exists: whatever happens from here on, the next one on this host can end it.
        self._write_lease(lease)
        self._lease = lease
        granted = boottime()
        try:
            self._etcd.grant(self._ttl, lease)
            term = self._create_leader(lease, granted + self._ttl)
        except EtcdError:
            self._revoke(lease)
            raise
        if term is not None and term.is_valid():
            return term
        self._revoke(lease)
        return None

    def _create_leader(self, lease: int, valid_until: float) -> Term | None:
        """Create `leader` if absent; an attempt without an answer is repeated as it was.

        Raises:
            EtcdError: it was refused, or the lease may have ended meanwhile. What is still on its
                way creates nothing, or a leader with a fence that nobody uses.
        """
        while True:
            try:
                result = self._etcd.txn(
                    [create_revision_is(self._key, 0)],
                    [Put(self._key, self._value, lease)],
                    [Get(self._key)],
                )
            except EtcdError:
                # Even if this one was refused, one before it may have been done: ask again.
                if boottime() >= valid_until or self._stopped.wait(self._ttl / 20):
                    raise
                continue
            created = result.revision if result.succeeded else None
            fence = fence_of(created, _leader_of(result.responses[0]), lease)
            if fence is None:
                return None
            return Term(self._key, fence, result.cluster_id, valid_until)

    def _stand_by(self, found: RangeResult) -> None:
        """Return when `leader` was deleted, or after a TTL: a silent member tells nothing."""
        fence = found.kvs[0].create_revision
        if fence != self._known_fence:
            self._known_fence = fence
            log.info("standing by", extra=fields(fence=fence))
        self._wait_for_deletion(found, self._stopped)

    def _wait_for_deletion(self, found: RangeResult, ended: threading.Event) -> bool:
        """Wait for a TTL at the most; return whether `leader` was deleted since it was found."""
        with self._etcd.watch(self._key, None, found.revision + 1, seconds=self._ttl) as watch:
            self._watch = watch
            deleted = False
            if not ended.is_set():  # otherwise the watch was cancelled before it was there
                deleted = any(change.deleted for change in watch)
            self._watch = None
        return deleted

    def _cancel_watch(self) -> None:
        if (watch := self._watch) is not None:
            watch.cancel()

    def _lead(self, term: Term) -> None:
        self._term = term
        for run in (self._keep, self._guard):
            thread = threading.Thread(target=run, args=(term,), name=run.__name__, daemon=True)
            self._threads.append(thread)
            thread.start()

    def _guard(self, term: Term) -> None:
        """End the term as soon as `leader` is deleted (on its own thread).

        The lease should be there for as long as it is kept alive. But a leader of etcd 3.5.16 that
        was paused for longer than a TTL may revoke leases when it wakes that others keep alive.
        """
        while term.is_valid():
            try:
                found = self._etcd.range(self._key)
                ours = bool(found.kvs) and found.kvs[0].create_revision == term.fence
                if not ours or self._wait_for_deletion(found, self._over):
                    log.error("the lease is gone", extra=fields(fence=term.fence))
                    term.end()
            except EtcdError:
                self._over.wait(_AGAIN_SECONDS)

    def _keep(self, term: Term) -> None:
        """Keep the lease alive until the term is over (on its own thread)."""
        while term.is_valid():
            sent = boottime()
            try:
                ttl = self._keeper_etcd.keepalive(self._lease)
            except EtcdError as error:
                self._limited.warning("keep", "the lease was not kept alive: %s", error)
                pause = next_keepalive(self._ttl, sent, boottime(), acknowledged=False)
            else:
                term.extend(min(ttl, self._ttl), sent)
                pause = next_keepalive(self._ttl, sent, boottime(), acknowledged=True)
            self._over.wait(pause)

    def _revoke(self, lease: int) -> None:
        """End a lease if it is there; if etcd cannot be asked, it ends by itself."""
        try:
            self._etcd.revoke(lease)
        except EtcdError as error:
            log.debug("a lease was not revoked", extra=fields(error=str(error)))

    def _read_lease(self) -> int:
        try:
            return int(self._lease_path.read_text("ascii"))
        except (OSError, ValueError):
            return 0

    def _write_lease(self, lease: int) -> None:
        descriptor = open_own_file(self._lease_path, os.O_TRUNC)
        try:
            os.write(descriptor, str(lease).encode("ascii"))
        finally:
            os.close(descriptor)


def _leader_of(response: object) -> LeaderKey | None:
    if not isinstance(response, RangeResult) or not response.kvs:
        return None
    return LeaderKey(response.kvs[0].lease, response.kvs[0].create_revision)
