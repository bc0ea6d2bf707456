"""The file that `trackctl dump` writes."""

from __future__ import annotations

from pathlib import Path

import pytest

from trackd_client.cli.commands import dump


def test_a_dump_holds_the_names_of_programs_and_no_arguments() -> None:
    session = {"command": "bash -c PASSWORD=hunter2", "labels": {"command": "ssh -p hunter2"}}
    event = {"fields": {"command": "curl hunter2", "session": 1}}
    assert dump.without_arguments({"sessions": [session], "events": (event,), "n": 1}) == {
        "sessions": [{"command": "bash", "labels": {"command": "ssh"}}],
        "events": [{"fields": {"command": "curl", "session": 1}}],
        "n": 1,
    }


def test_a_dump_never_goes_through_a_link_and_replaces_only_what_was_named(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    link = tmp_path / "link"
    link.symlink_to(victim)
    for replace in (True, False):
        with pytest.raises(OSError, match="link"):
            dump.write(link, "theirs", replace=replace)
    with pytest.raises(FileExistsError):
        dump.write(victim, "theirs", replace=False)
    assert victim.read_text() == "mine"
    dump.write(victim, "new", replace=True)
    assert victim.read_text() == "new\n"
    assert victim.stat().st_mode & 0o777 == 0o600
