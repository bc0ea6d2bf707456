"""Reports of tunnels on their way: one batch at a time, and nothing old."""

from __future__ import annotations

import math

import pytest

from trackd_client.core.reports import FRESH_SECONDS, REPORT_SECONDS, Batch, Reports
from trackd_client.wire.protocol import REQUEST, encode
from trackd_client.wire.requests import MAX_REPORTS

pytestmark = pytest.mark.rule(18)

SESSION, ANOTHER = object(), object()
FRAME = 1 << 20
#: Just before a moment.
BEFORE = 1e-6


def test_a_batch_has_the_newest_report_of_each_lease_once() -> None:
    reports = Reports()
    assert reports.due() == math.inf
    for lease, rtt, now in ((1, 0.5, 10.0), (2, None, 10.1), (1, 0.25, 10.2), (1, None, 10.3)):
        reports.add(SESSION, lease, rtt, now)
    assert reports.due() <= 10.0, "the first one is sent at once"
    assert reports.take(SESSION, 10.4, FRAME) == Batch([[1, 0.25], [2, None]], 10.1 + FRESH_SECONDS)
    assert reports.take(SESSION, 12.0, FRAME) is None, "nothing is said twice"
    assert reports.due() == math.inf


def test_batches_keep_their_distance() -> None:
    reports = Reports()
    reports.add(SESSION, 1, None, 10.0)
    assert reports.take(SESSION, 10.0, FRAME) is not None
    reports.add(SESSION, 1, None, 10.1)
    assert reports.due() == 10.0 + REPORT_SECONDS


def test_what_waited_too_long_and_what_another_session_said_is_dropped() -> None:
    reports = Reports()
    reports.add(SESSION, 1, None, 10.0)
    reports.add(ANOTHER, 2, None, 14.0)
    reports.add(SESSION, 3, None, 14.0)
    batch = reports.take(SESSION, 10.0 + FRESH_SECONDS, FRAME)
    assert batch == Batch([[3, None]], 14.0 + FRESH_SECONDS)
    reports.add(SESSION, 1, None, 15.0)
    assert reports.take(SESSION, 15.0 + FRESH_SECONDS - BEFORE, FRAME) is not None
    reports.add(SESSION, 1, None, 30.0)
    assert reports.take(None, 30.0, FRAME) is None
    assert reports.due() == math.inf, "without a session nothing waits"


@pytest.mark.parametrize(
    ("frame", "count"), [(1024, 500), (1 << 16, 5_000), (FRAME, 2 * MAX_REPORTS)]
)
def test_a_batch_fits_into_a_request_and_the_rest_comes_next(frame: int, count: int) -> None:
    reports, leases = Reports(), range(2**63, 2**63 + count)
    for lease in leases:
        reports.add(SESSION, lease, 0.1, 10.0)
    seen = []
    for i in range(10_000):
        batch = reports.take(SESSION, 10.0 + i * BEFORE, frame)
        if batch is None:
            break
        assert len(batch.rows) <= MAX_REPORTS
        body = {"op": "report", "reports": batch.rows, "token": bytes(16), "seq": 2**32}
        assert len(encode(REQUEST, body)) < frame
        seen += [row[0] for row in batch.rows]
    assert seen == list(leases)
