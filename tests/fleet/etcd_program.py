"""Gets etcd for the tests: Debian trixie's `etcd-server`, unpacked and not installed.

Run it to get etcd and print where it is. It is quick when etcd is there. TRACKD_ETCD may name
another etcd instead, by its path.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).parents[2]
PLACE: Final = REPOSITORY / "build" / "etcd"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def etcd_program() -> Path:
    """Return the path of etcd, after getting it where it is missing.

    Raises:
        RuntimeError: it cannot be had here; the message says why.
    """
    if named := os.environ.get("TRACKD_ETCD"):
        return Path(named)
    program = PLACE / "usr" / "bin" / "etcd"
    PLACE.parent.mkdir(exist_ok=True)
    with PLACE.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            try:
                _get()
            except (OSError, subprocess.CalledProcessError) as error:
                told = getattr(error, "stderr", None) or ""
                raise RuntimeError(f"no etcd from Debian's archive: {error}\n{told}") from error
    return program


def _get() -> None:
    """Download the package with lists and a cache of its own, and unpack it to PLACE at once."""
    with tempfile.TemporaryDirectory(dir=PLACE.parent, prefix="etcd-") as folder:
        work = Path(folder)
        for name in ("lists/partial", "cache/archives/partial"):
            (work / name).mkdir(parents=True)
        (work / "trixie.sources").write_text(
            f"Types: deb\nURIs: {_archive()}\nSuites: trixie\nComponents: main\n"
            f"Signed-By: {_KEYRING}\n"
        )
        apt = [
            "apt-get",
            "--quiet",
            *("-o", f"Dir::Etc::sourcelist={work}/trixie.sources"),
            *("-o", "Dir::Etc::sourceparts=/dev/null"),
            *("-o", f"Dir::State::lists={work}/lists"),
            *("-o", f"Dir::Cache={work}/cache"),
            *("-o", "APT::Sandbox::User=root"),
        ]
        _run(*apt, "update", cwd=work)
        _run(*apt, "download", "etcd-server", cwd=work)
        (package,) = work.glob("etcd-server_*.deb")
        _run("dpkg", "-x", str(package), "unpacked", cwd=work)
        shutil.rmtree(PLACE, ignore_errors=True)
        (work / "unpacked").rename(PLACE)


def _archive() -> str:
    """Return the address from which this machine has Debian."""
    asked = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages"]
    addresses = _run(*asked, cwd=PLACE.parent).split()
    for address in addresses:
        if address.endswith("/debian/"):
            return address
    raise OSError("apt knows no archive of Debian")


def _run(*command: str, cwd: Path) -> str:
    return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    print(etcd_program())
