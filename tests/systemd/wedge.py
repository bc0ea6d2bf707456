"""Runs the daemon, and wedges a part of it for good once a file says so. No hook in the product.

    wedge.py PART FILE run ...

PART is `actor`, `store` or `mailbox`. The file is removed, so that the next daemon is well.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trackd import cli
from trackd.actors.mailbox import RouterMailbox
from trackd.actors.writer import TrackerActor
from trackd.storage.sqlite import SQLiteStore

PARTS: dict[str, tuple[type, str]] = {
    "actor": (TrackerActor, "on_receive"),
    "store": (SQLiteStore, "append"),
    "mailbox": (RouterMailbox, "_begin_batch"),
}


def main() -> int:
    part, file, *arguments = sys.argv[1:]
    owner, name = PARTS[part]
    setattr(owner, name, wedged(getattr(owner, name), Path(file)))
    return cli.main(arguments)


def wedged(function: Callable[..., Any], file: Path) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        if file.exists():
            file.unlink()
            threading.Event().wait()
        return function(*arguments)

    return run


if __name__ == "__main__":
    sys.exit(main())
