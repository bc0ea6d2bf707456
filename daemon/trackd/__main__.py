"""What `trackd` and `python -m trackd` run: `trackd ping` at once, all else by `trackd.cli`.

It imports little, so that a probe of a container answers within milliseconds.
"""

import os
import signal
import sys

from trackd import streams


def main() -> int:
    """Run `trackd` with the arguments of the process, and return its exit code.

    Raises:
        SystemExit: for --help, --version and errors.
    """
    streams.guard()
    if os.getpid() == 1 and sys.argv[1:2] == ["run"]:
        take_the_place_of_init()
    return streams.run(_run_command)


def _run_command() -> int:
    if sys.argv[1:2] == ["ping"]:
        from trackd import ping

        return ping.main(sys.argv[2:])
    from trackd import cli

    return cli.main()


def take_the_place_of_init() -> None:
    """Do for `trackd run` what the first process of a container must do.

    The kernel gives it all orphans of the container, and drops each signal that it does not handle.
    The daemon starts no process, so it ignores SIGCHLD, and the kernel reaps every orphan. SIGTERM
    ends the process from now on, until the daemon handles it.
    """
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))


if __name__ == "__main__":
    raise SystemExit(main())
