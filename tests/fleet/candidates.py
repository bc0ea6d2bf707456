"""Candidates as processes, and what their logs must show: one leader at a time, always."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from fleet.cluster import Cluster
from trackd.fleet.etcd import Etcd

#: Seconds, as in a real fleet.
TTL = 5
KEY = b"trackd/1/test/leader"
ROWS = b"trackd/1/test/rows/"
REPOSITORY = Path(__file__).parents[2]


class Process:
    """A candidate of its own host: its own directory, its own process."""

    def __init__(self, cluster: Cluster, directory: Path, name: str) -> None:
        self.directory = directory / name
        self.directory.mkdir(exist_ok=True)
        self._log = self.directory / f"log-{time.monotonic_ns()}"
        self._errors = self.directory / "errors"
        program = REPOSITORY / "tests" / "fleet" / "candidate.py"
        command = [
            *(sys.executable, str(program), str(TTL), str(self.directory), name),
            *cluster.endpoints,
        ]
        with self._log.open("wb") as log, self._errors.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=log, stderr=errors)

    def lines(self) -> list[list[str]]:
        text = self._log.read_text()
        return [line.split() for line in text[: text.rfind("\n") + 1].splitlines()]

    def says(self, word: str) -> bool:
        return any(line[0] == word for line in self.lines())

    @property
    def fence(self) -> int:
        return next((int(line[1]) for line in self.lines() if line[0] == "leads"), 0)

    def sure(self) -> list[float]:
        """The moments at which it was sure to lead."""
        return [float(line[1]) for line in self.lines() if line[0] == "sure"]

    def last_sure(self) -> float | None:
        """The last of these moments, from the end of its log."""
        with self._log.open("rb") as log:
            log.seek(max(0, self._log.stat().st_size - 1000))
            lines = log.read().split(b"\n")[1:-1]
        moments = [float(line.split()[1]) for line in lines if line.startswith(b"sure ")]
        return moments[-1] if moments else None

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
        return self.process.wait()


def one_leader_at_a_time(
    candidates: list[Process], but_for: Sequence[tuple[float, float]] = ()
) -> list[float]:
    """Terms are in the order of their fences, and each ends before the next begins.

    Args:
        candidates: all that there were.
        but_for: times in which etcd may have revoked a lease that lived, so that a term may begin
            before the former leader has noticed.

    Returns:
        The seconds of each overlap that was excused.
    """
    terms = sorted((each.fence, each.sure()) for each in candidates if each.fence)
    assert len({fence for fence, _ in terms}) == len(terms)
    terms = [term for term in terms if term[1]]
    excused = []
    for (_, earlier), (_, later) in pairwise(terms):
        if earlier[-1] >= later[0]:
            assert any(begin < later[0] < end for begin, end in but_for), (earlier[-1], later[0])
            excused.append(earlier[-1] - later[0])
    return excused


def no_row_of_a_former_term(etcd: Etcd, candidates: list[Process]) -> None:
    terms = sorted((each.fence, len(each.sure())) for each in candidates if each.fence)
    for (fence, count), (successor, _) in pairwise(terms):
        rows = etcd.range(ROWS + b"%d/" % fence, ROWS + b"%d0" % fence).kvs
        assert rows or count < 2
        assert all(fence < row.mod_revision < successor for row in rows)
