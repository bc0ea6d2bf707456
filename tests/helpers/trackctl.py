"""What operators have: `trackctl` as a process, and a terminal of their own to run it in (tmux)."""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from helpers.support import PATIENCE, wait_until

#: Makes a shell script of some lines, and returns where it is.
Script = Callable[[str], str]
TRACKCTL = [sys.executable, "-c", "from trackd_client.cli import main; main()"]
#: The environment without what would send `trackctl` elsewhere, or colour what it prints.
PLAIN = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("TRACKD_")
    and name not in {"NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"}
}


def trackctl(
    *arguments: str, text: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run `trackctl` to its end, with this text on its standard input."""
    return subprocess.run(
        [*TRACKCTL, *arguments],
        capture_output=True,
        text=True,
        input=text or "",
        timeout=60,
        check=False,
        env=PLAIN | environ,
    )


def start_trackctl(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start `trackctl`, for a test that talks with it or ends it."""
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": PLAIN}
    return subprocess.Popen([*TRACKCTL, *arguments], **{**settings, **options})


class Terminal:
    """A terminal in which a command runs, as a person sees it: tmux, with a server of its own."""

    def __init__(self, *command: str, width: int = 80, height: int = 24, **environ: str) -> None:
        """Open it and run the command in a shell, which stays when the command has ended."""
        if shutil.which("tmux") is None:
            if os.environ.get("CI") == "true":
                pytest.fail("CI has no tmux")
            pytest.skip("there is no tmux to see a terminal with")
        self._tmux = [
            "tmux",
            "-L",
            f"trackd-{os.getpid()}-{secrets.token_hex(4)}",
            "-f",
            "/dev/null",
        ]
        env = {**PLAIN, "PS1": "$ ", "TERM": "xterm-256color", **environ}
        subprocess.run(
            [
                *self._tmux,
                "new-session",
                "-d",
                "-x",
                str(width),
                "-y",
                str(height),
                "bash",
                "--norc",
            ],
            check=True,
            env=env,
            timeout=PATIENCE,
        )
        self.shows("$")
        if command:
            self.enter(shlex.join(command))

    def enter(self, text: str) -> None:
        """Type a line, and Enter."""
        self._ask("send-keys", "-l", text)
        self.press("Enter")

    def press(self, *keys: str) -> None:
        """Press keys, by the names that tmux has for them."""
        self._ask("send-keys", *keys)

    def screen(self, *, colours: bool = False) -> str:
        """Return what is on the screen."""
        return self._ask("capture-pane", "-p", *(["-e"] if colours else []))

    def shows(self, text: str) -> str:
        """Wait until a text is on the screen, and return the screen."""
        try:
            wait_until(lambda: text in self.screen())
        except AssertionError:
            raise AssertionError(f"{text!r} is not on the screen:\n{self.screen()}") from None
        return self.screen()

    def resize(self, width: int, height: int) -> None:
        """Change the size of the terminal."""
        self._ask("resize-window", "-x", str(width), "-y", str(height))

    def state(self, question: str) -> str:
        """Return what tmux knows of the terminal, in its own words."""
        return self._ask("display-message", "-p", question).strip()

    def pane_pid(self) -> int:
        """Return the pid of the shell."""
        return int(self.state("#{pane_pid}"))

    def command_pid(self) -> int:
        """Return the pid of the command that the shell runs."""
        wait_until(self._commands)
        return int(self._commands()[0])

    def ends(self) -> None:
        """Wait until the command has ended: what is typed before, it may take for itself."""
        wait_until(lambda: not self._commands())

    def _commands(self) -> list[str]:
        shell = self.pane_pid()
        return Path(f"/proc/{shell}/task/{shell}/children").read_text().split()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ask("kill-server")

    def _ask(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words], check=True, capture_output=True, text=True, timeout=PATIENCE
        )
        return done.stdout
