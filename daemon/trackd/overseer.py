"""The main thread's work while the actors serve: wait, reload, report to systemd."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import pykka

from trackd.actors.messages import Reload, ReloadOutcome
from trackd.config.settings import Config, ConfigError, live_part
from trackd.host.logs import fields, set_level
from trackd.host.roles import Roles
from trackd.host.systemd import Notifier
from trackd.probe import Probe
from trackd.signals import ActorEnded, Events, SignalCame

log = logging.getLogger("trackd")

#: Seconds that a reload may take to reach the tracker.
RELOAD_SECONDS = 5.0

#: Seconds between two probes, when the watchdog does not need more.
STATUS_SECONDS: Final = 5.0

#: Seconds between two looks at the files that the daemon created.
LOOK_SECONDS: Final = 1.5

#: Reports to the watchdog within the time that it allows.
_SIGNS: Final = 3


class Overseer:
    """The main thread's work while the actors serve: wait, reload, report to systemd."""

    def __init__(
        self,
        config: Config,
        reread: Callable[[], Config],
        events: Events,
        notifier: Notifier,
        *,
        closable: bool,
    ) -> None:
        """Set up the overseer.

        Args:
            config: the settings.
            reread: reads the configuration again.
            events: signals and ends of actors.
            notifier: reports to systemd.
            closable: whether the daemon ends when its terminal is closed.
        """
        self.events = events
        self.notifier = notifier
        self._config = config
        self._reread = reread
        self._status = ""
        self._refused = ""  # what the last reload did not do
        self._had_terminal = closable and _has_terminal()

    def ask_reload(self) -> None:
        """Ask for a reload as soon as possible. Any thread may call it."""
        self.events.put(SignalCame(signal.SIGHUP))

    def ended(self, name: str, thread: threading.Thread) -> None:
        """Note the end of an actor. Runs in that actor's thread."""
        self.events.put(ActorEnded(name, thread))

    def wait(
        self, tracker: pykka.ActorRef[Any], probe: Probe | None, look: Callable[[], None]
    ) -> SignalCame | ActorEnded:
        """Wait for the event that ends the daemon, and do the main thread's work meanwhile.

        Args:
            tracker: applies a reload.
            probe: proves that requests are answered, for systemd.
            look: looks at the daemon's files; what it raises ends the wait.
        """
        interval = (self.notifier.watchdog or STATUS_SECONDS * _SIGNS) / _SIGNS
        probe_at = time.monotonic() + interval
        while True:
            try:
                event = self.events.get(timeout=min(LOOK_SECONDS, interval))
            except queue.Empty:
                look()
                if time.monotonic() < probe_at:
                    continue
            else:
                if not isinstance(event, SignalCame) or event.number != signal.SIGHUP:
                    return event
                if self._had_terminal and not _has_terminal():
                    return event  # not a request to reload: the terminal was closed
                self.reload(tracker)
            if probe is not None and self.prove(probe, interval):
                self.notifier.alive()
            probe_at = time.monotonic() + interval

    def prove(self, probe: Probe, seconds: float) -> bool:
        """Send a request through the whole daemon; return whether its reply came."""
        counts = probe.trip(seconds, give_up=lambda: not self.events.empty())
        if counts is None:
            return False
        status = counts.get("status") or self._describe(counts)
        if self._refused:
            status = f"{status}, {self._refused}"
        if status != self._status:
            self._status = status
            self.notifier.status(status)
        return True

    def _describe(self, counts: Mapping[str, Any]) -> str:
        """Return the counts of a tracker in a line for people."""
        parts = [
            f"claimed {counts['claimed_desired']} of {counts['desired']} desired",
            f"{counts['inflight']} in flight",
            f"{counts['sessions']} sessions",
        ]
        if undesired := counts["claimed"] - counts["claimed_desired"]:
            parts.append(f"{undesired} claimed that are not desired")
        if counts["waiting"]:
            parts.append(f"{counts['waiting']} waiting")
        if str(counts["store"]).startswith("failing"):
            parts.append(f"store {counts['store']}")
        return ", ".join(parts)

    def reload(self, tracker: pykka.ActorRef[Any]) -> None:
        """Read the configuration again and apply it; an invalid one changes nothing."""
        self.notifier.reloading()
        self._refused = ""
        try:
            config, changed, refused = live_part(self._config, self._reread())
            roles = Roles(config.admin_users, config.admin_groups)
            outcome = ReloadOutcome(
                tuple(each.name for each in changed),
                tuple((each.name, each.fixed) for each in refused),
            )
            tracker.ask(Reload(config, roles, outcome), timeout=RELOAD_SECONDS)
        except (ConfigError, ValueError) as error:
            problems = error.problems if isinstance(error, ConfigError) else (str(error),)
            # In one line: the log would print line breaks as \n.
            log.error("reload refused; nothing changed", extra=fields(reason="; ".join(problems)))  # noqa: TRY400 - the reason says it all
            self._refused = "the last reload was refused, see the log"
            with contextlib.suppress(pykka.ActorDeadError):
                tracker.tell(ReloadOutcome(error=str(error)))
        except (pykka.ActorDeadError, pykka.Timeout):
            log.exception("reload not done: the daemon does not answer itself")
        else:
            self._config = config
            set_level(config.log_level)
            for setting in refused:
                log.warning(
                    "setting not changed: it needs a restart",
                    extra=fields(setting=setting.name, reason=setting.fixed),
                )
            for problem in roles.unknown:
                log.warning("an admin is unknown", extra=fields(reason=problem))
            if refused:
                self._refused = f"not reloaded: {', '.join(each.name for each in refused)}"
            log.info("reloaded", extra=fields(changed=", ".join(each.name for each in changed)))
        self._status = ""
        self.notifier.ready()


def _has_terminal() -> bool:
    """Return whether the process has a controlling terminal that is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True
