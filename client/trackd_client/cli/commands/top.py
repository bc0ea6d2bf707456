"""`trackctl top`: a live view of proxies and agents, over the whole terminal.

Two threads fetch (`feed`). The main thread reads keys and draws (`view`), and gives the terminal
back as it was, whatever happens.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import click
from rich.console import Console
from rich.live import Live

from trackd_client.cli import common
from trackd_client.cli.top.feed import Feed
from trackd_client.cli.top.view import View

_EPILOG = """\b
Examples:
  trackctl top
  trackctl --cluster example.com top --interval 0.5

\b
Keys:
  q               quit (Ctrl-C as well)
  Tab             proxies or agents
  s, r            sort by the next column; reverse the order
  f               all proxies, or the missing, claimed or undesired ones
  /               only names with this text in them; Enter ends, Esc clears
  arrows, PgUp, PgDn, Home, End    scroll
  space           pause, and go on
"""
_FRAME_SECONDS: Final = 0.25


@click.command(epilog=_EPILOG)
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1),
    default=1.0,
    show_default=True,
    metavar="SECONDS",
    help="How often to ask for what no event says: rates and who waits.",
)
@click.pass_obj
def top(options: common.Options, *, interval: float) -> None:
    """Watch proxies, agents and rates, live."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("top needs a terminal; proxies, sessions and watch do not")
    with (
        common.report_errors(),
        options.connect() as tracker,
        _catch_signals(),
        _open_keys() as keys,
    ):
        feed = Feed(tracker, interval)
        view = View(feed)
        console = Console(highlight=False)
        with feed, Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                if not view.frozen:
                    live.update(view.draw(*console.size), refresh=True)
                came = keys(_FRAME_SECONDS)
                if not all(view.press(key) for key in came):
                    return
                if came:
                    live.update(view.draw(*console.size), refresh=True)
                if feed.failure is not None:
                    raise feed.failure


# -- the terminal ---------------------------------------------------------------------------


class Ended(BaseException):
    """A signal asks for the end; raised in the main thread, so that everything is put back."""


@contextmanager
def _catch_signals() -> Iterator[None]:
    """End in order on Ctrl-C, and on SIGTERM and SIGHUP with the code that a shell gives it."""
    caught = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _frame: FrameType | None) -> None:
        for each in caught:  # nothing may come between while all is put back
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    before = {number: signal.signal(number, end) for number in caught}
    # Stopped in the middle it would leave the shell a terminal without echo.
    before[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    try:
        yield
    except Ended as ended:
        if ended.args[0] != signal.SIGINT:
            sys.exit(128 + ended.args[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _open_keys() -> Iterator[Callable[[float], list[str]]]:
    """Have keys come as they are pressed; yield what reads those of some seconds."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)

        def read(seconds: float) -> list[str]:
            if not select.select([descriptor], [], [], seconds)[0]:
                return []
            came = os.read(descriptor, 1024)
            return (
                read_keys(came.decode(errors="replace")) if came else ["q"]
            )  # the terminal is gone

        yield read
    finally:
        with suppress(termios.error):  # the terminal itself is gone
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


_NAMED: Final = {
    "\x1b[A": "up",
    "\x1b[B": "down",
    "\x1bOA": "up",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    "\x1b[H": "home",
    "\x1b[F": "end",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\t": "tab",
    "\n": "enter",
    "\r": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x1b": "escape",
}


def read_keys(text: str) -> list[str]:
    """Return the keys in what the terminal sent."""
    found = []
    while text:
        code = next(
            (code for code in sorted(_NAMED, key=len, reverse=True) if text.startswith(code)),
            text[0],
        )
        found.append(_NAMED.get(code, code))
        text = text[len(code) :]
    return found
