"""The command line: `trackd run`, `lead`, `check-config`, `demo` and `keys`.

It reads the arguments, reports what is wrong with them, and calls the rest. `trackd.server` is
imported only when it is needed, so that `--help` and errors come at once. An error is one message
on standard error, never a traceback, and an exit code of `trackd.config.exits`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from trackd.config import exits, settings
from trackd.config.kinds import near
from trackd_client._version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from _typeshed import SupportsWrite

_EXIT_CODES: Final = "exit codes:\n" + "\n".join(
    f"  {code:<4} {meaning}" for code, meaning in exits.MEANINGS.items()
)

_EPILOG: Final = f"""\
examples:
  trackd run --cluster-name example.com     serve, as any user, with nothing else set up
  trackd check-config /etc/trackd.toml      is this file valid?
  trackd demo                               see it work

{_EXIT_CODES}
"""

_RUN_EPILOG: Final = f"""\
Defaults stand in brackets; * marks settings that a reload changes in a running daemon.

Every setting is a flag, an environment variable and a key of the TOML file, for example
--proxy-expiry, TRACKD_PROXY_EXPIRY and proxy_expiry; the limits stand under [limits] there.
A flag wins over its variable, and the variable wins over the file. TRACKD_CONFIG stands for
--config.

SIGTERM, SIGINT and SIGQUIT stop the daemon. SIGHUP makes it read its configuration again: settings
marked * change, the others are refused and logged; an invalid file changes nothing.

examples:
  trackd run --cluster-name example.com
  trackd run --cluster-name example.com --endpoint ipc:///tmp/mine/trackd.sock --state-dir ""
  trackd run --config /etc/trackd.toml --log-level debug
  TRACKD_CONNECTION_COUNT=3 trackd run --cluster-name example.com

{_EXIT_CODES}
"""

_LEAD_EPILOG: Final = f"""\
Settings are as for `trackd run`. A candidate needs [fleet] etcd_endpoints, listen, key_file and
hosts_dir; agents reach it through `trackd run` on their own hosts, with [fleet] leaders.

One candidate of a fleet leads, and the others stand by. When its term is over, it ends with code
{exits.DEPOSED}; start it again, and it stands by. SIGHUP makes it read its settings again, and the
keys of the hosts.

example:
  trackd lead --config /etc/trackd/lead/example.com.toml

{_EXIT_CODES}
"""

_CHECK_EPILOG: Final = """\
Reads only the file: no flags, no environment, no daemon. Reports everything that is wrong in it.
Exit codes: 0, the file is valid; 2, it is not.

example:
  trackd check-config /etc/trackd.toml
"""

_DEMO_EPILOG: Final = """\
Everything runs on loopback and in a temporary directory, which is removed afterwards, also after
Ctrl-C. Exit code 0: every invariant held.

examples:
  trackd demo
  trackd demo --plain --agents 8 --proxies 10 --seed 7
"""


_KEYS_EPILOG: Final = """\
A host of a fleet proves who it is by a pair of keys. `make` writes two files:

  HOST.key  the secret key, mode 0600. It stays on that host, and nobody else may read it.
  HOST.pub  the public key. Copy it to those who shall know the host by it.

`make` overwrites nothing. `show` prints the public key of either file, and never the secret one; of
a HOST.key it is what HOST.pub has to have. A HOST.pub may have two lines while a host changes
from one key to the next: either key is good. To take a key back, remove its line or its file.

Exit codes: 0, done; 2, it cannot be done, and nothing was changed.

examples:
  trackd keys make agent-7 --out /etc/trackd/keys
  trackd keys show /etc/trackd/keys/agent-7.key > agent-7.pub
"""


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the paragraphs as they are, and puts most flags beside their meaning."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        _fail(f"{message} (see {self.prog} --help)", exits.USAGE)

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Print help or the version; argparse itself ignores that its output is lost."""
        (file or sys.stderr).write(message)

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """End the process with an error about `words`, which are not arguments of this command."""
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        if not flags:
            self.error(f"unexpected argument: {' '.join(words)}")
        guesses = ((flag, near(flag, self._option_string_actions)) for flag in flags)
        hints = (f"{flag}; did you mean {guess}?" if guess else flag for flag, guess in guesses)
        self.error(f"no such flag: {' '.join(hints)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `trackd` with `argv`, or the arguments of the process, and return its exit code.

    Raises:
        SystemExit: for --help, --version and errors, with a code of `trackd.config.exits`.
    """
    try:
        return _run_command(argv)
    except exits.StartError as error:
        _fail(str(error), error.code)
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def _run_command(argv: Sequence[str] | None) -> int:
    parser, commands = _parsers()
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        commands[args.command].refuse(unknown)
    if args.command in ("run", "lead"):
        return _run(args, lead=args.command == "lead")
    if args.command == "check-config":
        return _check_config(args.file)
    if args.command == "keys":
        from trackd.fleet import keys

        return keys.main(args)
    from trackd import demo

    return demo.main(args)


def _run(args: argparse.Namespace, *, lead: bool) -> int:
    flags = {name: getattr(args, name) for name in settings.SETTINGS}
    named = args.config or os.environ.get(settings.CONFIG_VARIABLE)
    cluster = args.cluster_name or os.environ.get("TRACKD_CLUSTER_NAME")

    def read() -> settings.Config:
        file = Path(named) if named else settings.default_file(os.environ, cluster)
        return settings.load(flags, os.environ, file)

    chosen = read()
    from trackd.host import logs
    from trackd.signals import hold_signals

    hold_signals()

    logs.setup(chosen.log_level)
    try:
        serve: Callable[[settings.Config, Callable[[], settings.Config]], int]
        if lead:
            from trackd.fleet.lead import run as serve
        else:
            from trackd.server import run as serve
        if chosen.leaders and not lead:
            from trackd.fleet import relay  # noqa: F401 - likewise
        if chosen.http and not lead:
            import prometheus_client  # noqa: F401 - a missing package must show now, not at the first request

            from trackd.http import listener  # noqa: F401 - likewise for waitress
    except ModuleNotFoundError as error:
        extra = "fleet" if error.name in {"grpc", "google"} else "daemon"
        if error.name not in {"pykka", "waitress", "prometheus_client", "grpc", "google"}:
            raise
        _fail(
            f"the daemon needs {error.name}; run in a checkout of trackd: pip install '.[{extra}]'",
            exits.USAGE,
        )
    return serve(chosen, read)


def _check_config(file: Path) -> int:
    found = settings.check_file(file)
    print(f"{file} is valid")  # noqa: T201 -- the output of the command
    from trackd.host.roles import Roles

    for problem in Roles(found.admin_users, found.admin_groups).unknown:
        print(f"note: {problem}")  # noqa: T201
    if not found.cluster_name:
        print("note: it names no cluster; give --cluster-name or TRACKD_CLUSTER_NAME")  # noqa: T201
    return exits.OK


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    """Return the parser of `trackd`, and that of each command by its name."""
    parser = _Parser(
        prog="trackd",
        description="Shares reverse-tunnel leases among the agent processes of this host, so that\n"
        "they dial each proxy behind a load balancer once.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--version", action="version", version=f"trackd {__version__}", help="show the version"
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )

    def command(name: str, description: str, epilog: str, usage: str) -> _Parser:
        made = commands.add_parser(
            name,
            help=description,
            description=f"{description[0].upper()}{description[1:]}.",
            epilog=epilog,
            usage=f"trackd {name} {usage}",
            formatter_class=_Help,
            allow_abbrev=False,
        )
        assert isinstance(made, _Parser)  # argparse makes subparsers of their parent's class
        return made

    run = command(
        "run",
        "serve one cluster in the foreground until a signal",
        _RUN_EPILOG,
        "--cluster-name NAME [--SETTING VALUE ...] [--config FILE]",
    )
    lead = command(
        "lead",
        "stand by to lead a fleet of hosts, and lead it for one term",
        _LEAD_EPILOG,
        "--cluster-name NAME [--SETTING VALUE ...] [--config FILE]",
    )
    for each in (run, lead):
        _add_settings(each)

    check = command("check-config", "check a configuration file", _CHECK_EPILOG, "FILE")
    check.add_argument("file", metavar="FILE", type=Path, help="TOML file to check")

    # `trackd.__main__` runs it before this module is imported; here is its line in --help.
    commands.add_parser("ping", help="ask a daemon for an answer, within milliseconds")

    demo = command(
        "demo",
        "show real agents and a daemon at work with simulated proxies",
        _DEMO_EPILOG,
        "[--agents N] [--proxies N] [--seed N] [--plain]",
    )
    demo.add_argument("--agents", metavar="N", type=_count, default=6, help="agent processes [6]")
    demo.add_argument("--proxies", metavar="N", type=_count, default=12, help="proxies [12]")
    demo.add_argument(
        "--seed", metavar="N", type=int, help="repeats the random choices of a run [random]"
    )
    demo.add_argument("--plain", action="store_true", help="lines instead of a live display")

    keys = command(
        "keys",
        "make and show the keys of the hosts of a fleet",
        _KEYS_EPILOG,
        "make HOST [--out DIR] [--json]\n       trackd keys show FILE [--json]",
    )
    actions = keys.add_subparsers(
        dest="action", metavar="ACTION", required=True, prog="trackd keys"
    )
    make = actions.add_parser("make", help="make a pair of keys", formatter_class=_Help)
    make.add_argument("host", metavar="HOST", help="the host's name")
    make.add_argument(
        "--out", metavar="DIR", type=Path, default=Path(), help="where the files go [.]"
    )
    show = actions.add_parser("show", help="print the public keys of a file", formatter_class=_Help)
    show.add_argument("file", metavar="FILE", type=Path, help="HOST.key or HOST.pub")
    for action in (make, show):
        action.add_argument("--json", action="store_true", help="print JSON")
    return parser, {"run": run, "lead": lead, "check-config": check, "demo": demo, "keys": keys}


def _add_settings(parser: _Parser) -> None:
    """Let a command take every setting as a flag."""
    parser.add_argument("--config", metavar="FILE", help="TOML file to read settings from")
    general = parser.add_argument_group("settings")
    limits = parser.add_argument_group(
        "limits", "a request beyond a limit is answered with an error"
    )
    fleet = parser.add_argument_group("fleet", "one tracker for many hosts; see docs/fleet.md")
    groups = {"": general, "fleet": fleet}
    for setting in settings.SETTINGS.values():
        # The text is passed on as typed: `settings` checks it with the variables and the file.
        groups.get(setting.table, limits).add_argument(
            setting.flag,
            metavar=setting.kind.metavar,
            help=f"{setting.help} [{setting.default}{' *' if setting.live else ''}]",
        )


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def _fail(message: str, code: int) -> NoReturn:
    """Print an error on standard error, for the journal with its priority, and exit."""
    from trackd.host import logs

    # journald takes the priority off each line; without one it would be a line of information.
    mark = "<3>" if logs.is_journal(sys.stderr, os.environ) else ""
    for line in f"trackd: error: {message}".split("\n"):
        print(f"{mark}{line}", file=sys.stderr)  # noqa: T201 -- where errors belong
    raise SystemExit(code)
