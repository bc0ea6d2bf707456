"""Inspector: looks after what the leader's writer must not wait for: candidates, and etcd itself.

On a thread of its own it asks each member of etcd how it is, and who is there to lead next, with a
pause between two looks. The writer reads what was found last.
"""

from __future__ import annotations

import logging
import threading
from typing import Any, Final

from trackd.fleet.etcd import Compacted, Etcd, EtcdError, KeyValue, Status
from trackd.fleet.presence import read_present
from trackd.fleet.rows import Keys
from trackd_client.core.limited_log import LimitedLog
from trackd_client.wire.clock import boottime

log = logging.getLogger("trackd.fleet")

#: Seconds between two looks.
_PAUSE_SECONDS: Final = 10.0
#: Seconds for which a watch may show that nothing was compacted yet.
_COMPACTED_SECONDS: Final = 2.0


class Inspector:
    """The inspector of a leader."""

    def __init__(self, etcd: Etcd, prefix: bytes, host: str) -> None:
        """Prepare it; `start` begins.

        Args:
            etcd: a client of its own, which is closed at the end.
            prefix: of all keys of the fleet, with its slash.
            host: the host that leads.
        """
        self._etcd = etcd
        self._keys = Keys(prefix)
        self._host = host
        self._candidates: list[dict[str, Any]] = []
        self._health: dict[str, Any] | None = None
        self._looked = 0.0
        self._compacted = 0
        self._compacted_at = 0.0  # when that was seen to change, or the first look
        self._ended = threading.Event()
        self._limited = LimitedLog(log)
        self._thread = threading.Thread(target=self._run, name="inspector", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End; a call that waits for an answer ends too."""
        self._ended.set()
        self._etcd.close()
        self._thread.join()

    def candidates(self) -> list[dict[str, Any]]:
        """Return a row for each candidate that is there, by host; any thread may ask."""
        return self._candidates

    def health(self) -> dict[str, Any] | None:
        """Return how etcd is; None before the first look. Any thread may ask."""
        health, now = self._health, boottime()
        if health is None:
            return None
        return {"looked": now - self._looked, **health, "compacted": now - self._compacted_at}

    def _run(self) -> None:
        while not self._ended.is_set():
            self._look()
            self._ended.wait(_PAUSE_SECONDS)

    def _look(self) -> None:
        """Look once. Where etcd as a whole does not answer, the candidates stay as they were."""
        found = [(endpoint, self._ask_member(endpoint)) for endpoint in self._etcd.endpoints]
        health: dict[str, Any] = {
            "members": [self._row_of_member(*each) for each in found],
            "alarms": [],
            "revisions": None,
        }
        names = {status.member_id: endpoint for endpoint, status in found if status is not None}
        try:
            health["alarms"] = [
                {"member": names.get(alarm.member_id, f"{alarm.member_id:x}"), "kind": alarm.kind}
                for alarm in self._etcd.alarms()
            ]
            present = self._etcd.range(self._keys.candidates, self._keys.candidates_end)
            self._candidates = [self._row_of_candidate(each) for each in present.kvs]
            health["revisions"] = present.revision - self._ask_compacted()
        except EtcdError as error:
            if not self._ended.is_set():
                self._limited.warning("look", "etcd cannot be looked at: %s", error)
        self._looked, self._health = boottime(), health

    def _ask_member(self, endpoint: str) -> Status | None:
        try:
            return self._etcd.status(endpoint)
        except EtcdError:
            return None

    def _ask_compacted(self) -> int:
        """Return the revision before which all is compacted, 0 when nothing is; note a change."""
        revision = 0
        nothing = self._keys.leader + b"-"  # a key that nobody sets
        try:
            with self._etcd.watch(nothing, None, 1, seconds=_COMPACTED_SECONDS) as watch:
                next(watch, None)
        except Compacted as error:
            revision = error.revision
        if revision != self._compacted or not self._compacted_at:
            self._compacted, self._compacted_at = revision, boottime()
        return revision

    def _row_of_member(self, endpoint: str, status: Status | None) -> dict[str, Any]:
        if status is None:
            nothing = dict.fromkeys(("size", "in_use", "quota"))
            return {"member": endpoint, "answers": False, "version": "", "leads": False, **nothing}
        return {
            "member": endpoint,
            "answers": True,
            "version": status.version,
            "leads": status.leader == status.member_id,
            "size": status.db_size,
            "in_use": status.db_size_in_use,
            "quota": self._etcd.quota(endpoint),
        }

    def _row_of_candidate(self, kv: KeyValue) -> dict[str, Any]:
        present = read_present(kv)
        return {"host": present.host, "leads": present.host == self._host, **present._asdict()}
