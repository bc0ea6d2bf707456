"""What the client's sockets share: the error of a request that nobody answered."""

from __future__ import annotations

from pathlib import Path

import pytest

from trackd_client.core.sockets import no_answer_error
from trackd_client.errors import DaemonAbsent, NoAnswer


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.199, "0.2 s"), (0.2, "0.2 s"), (5.0004, "5 s"), (0.0501, "0.05 s"), (124.7, "120 s")],
)
def test_the_wait_is_shown_as_the_caller_set_it(seconds: float, shown: str, tmp_path: Path) -> None:
    error = no_answer_error(f"ipc://{tmp_path}/s", "ping", seconds, connected=True)
    assert isinstance(error, NoAnswer)
    assert f"did not answer ping within {shown};" in str(error)


def test_without_a_connection_the_error_says_what_is_missing(tmp_path: Path) -> None:
    error = no_answer_error(f"ipc://{tmp_path}/s", "ping", 1.0, connected=False)
    assert isinstance(error, DaemonAbsent)
    assert f"{tmp_path}/s" in str(error)
