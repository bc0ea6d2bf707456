"""How `trackctl` ends."""

from __future__ import annotations

import pytest

from trackd_client.cli import common
from trackd_client.errors import NoAnswer, TrackdError


@pytest.mark.parametrize(
    ("error", "code"), [(TrackdError("bad \x1b[2J\nnews"), 1), (NoAnswer("\x1b[2J\n"), 3)]
)
def test_no_terminal_obeys_an_error_of_a_daemon(
    error: TrackdError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, common.report_errors():
        raise error
    assert ended.value.code == code
    said = capsys.readouterr().err
    assert said.startswith("trackctl: ")
    assert "\\x1b[2J\\n" in said
    assert said.removesuffix("\n").isprintable()
