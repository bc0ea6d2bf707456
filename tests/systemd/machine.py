"""A booted systemd in a root file system of its own, to try the units in. No tests here.

mmdebstrap makes the root from the host's own package sources, pip fetches the wheels with the
host's own settings, and both are kept outside the repository between runs. A run boots a copy
with systemd-nspawn, without a network, and enters its namespaces to run commands. It never
boots on the host's own files: systemd would clear the host's temporary ones.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or "/var/cache", "trackd-tests")
PACKAGES = ("dbus", "make", "python3", "python3-venv", "sudo", "systemd", "systemd-sysv")
PYTHON = "/usr/local/lib/trackd/current/bin/python"
#: Where the checkout and the wheels are in the machine.
CHECKOUT = "/srv/trackd"
WHEELS = "/srv/wheels"
PATIENCE = 60.0
CLEAN = (
    *("env", "-i", "-C", CHECKOUT, "LANG=C.UTF-8"),
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin",
)
NAMESPACES = ("--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")


def why_not() -> str | None:
    """Return why no machine can be booted here, or None."""
    if os.geteuid() != 0:
        return "only root can boot a machine"
    for program, package in (
        ("mmdebstrap", "mmdebstrap"),
        ("systemd-nspawn", "systemd-container"),
        ("nsenter", "util-linux"),
    ):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian's package {package})"
    if not _codename():
        return "the host's system is not Debian, whose packages the machine is made of"
    return None


def build(kind: str = "root", packages: Sequence[str] = PACKAGES) -> Path:
    """Return the root file system that every run begins with; made when there is none.

    Args:
        kind: what it is called; of each kind one is kept.
        packages: what is installed in it.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    sources = _sources()
    known = json.dumps([_codename(), packages, [path.read_text() for path in sources]])
    base = CACHE / f"{kind}-{hashlib.sha256(known.encode()).hexdigest()[:16]}"
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for run in CACHE.glob("run-*"):  # of tests that were killed
            with contextlib.suppress(BlockingIOError):
                os.close(_hold(run))
                shutil.rmtree(run, ignore_errors=True)
        if not base.exists():
            for old in CACHE.glob(f"{kind}-*"):
                shutil.rmtree(old)
            new = CACHE / f"{kind}-new"
            excluded = ("/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*")
            subprocess.run(
                [
                    "mmdebstrap",
                    "--quiet",
                    "--variant=minbase",
                    f"--include={','.join(packages)}",
                    *(f"--dpkgopt=path-exclude={path}" for path in excluded),
                    _codename(),
                    new,
                    *sources,
                ],
                check=True,
                stdin=subprocess.DEVNULL,
            )
            new.rename(base)
        _fetch_wheels(base)
    return base


@contextlib.contextmanager
def copy_of_root(*kind: Any) -> Iterator[Path]:
    """Make a copy of the root file system, with pip set up; it is gone afterwards.

    Args:
        kind: which one, as for `build`.
    """
    base = build(*kind)
    root = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE), "root")
    held = _hold(root.parent)
    try:
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        pip = f"[global]\nno-index = true\nfind-links = {WHEELS}\n"
        (root / "etc/pip.conf").write_text(pip)
        yield root
    finally:
        shutil.rmtree(root.parent)
        os.close(held)


def _hold(run: Path) -> int:
    """Hold the directory of a run until this process ends; return the descriptor.

    Raises:
        BlockingIOError: another process holds it.
    """
    held = os.open(run, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise
    return held


def _codename() -> str:
    text = Path("/etc/os-release").read_text()
    names = dict(re.findall(r'(?m)^(\w+)="?([^"\n]*)', text))
    return names.get("VERSION_CODENAME", "") if names.get("ID") == "debian" else ""


def _sources() -> list[Path]:
    """Return the host's files that name Debian's own archives."""
    places = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    return [
        path
        for path in places
        if path.suffix in {".list", ".sources"}
        and path.exists()
        and re.search(rf"(?m)^(deb|Suites:).*\b{_codename()}\b.*", path.read_text())
        and (path.name == "sources.list" or "debian-archive-keyring" in path.read_text())
    ]


def _fetch_wheels(base: Path) -> None:
    """Fetch what `make install` needs, with the host's pip and as it is set up, for the root's."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = sorted(
        [
            *project["build-system"]["requires"],
            *project["project"]["dependencies"],
            *extras["daemon"],
            *extras["cli"],
            *(each for each in extras["fleet"] if not each.startswith("trackd[")),
        ]
    )
    version = next((base / "usr/lib").glob("python3.*")).name.removeprefix("python")
    wheels = base / WHEELS.lstrip("/")
    stamp = wheels / "stamp"
    key = json.dumps([wanted, version])
    if stamp.exists() and stamp.read_text() == key:
        return
    shutil.rmtree(wheels, ignore_errors=True)
    wheels.mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
    subprocess.run(
        [*command, f"--python-version={version}", "--dest", wheels, *wanted],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    stamp.write_text(key)


class Machine:
    """A booted machine.

    Attributes:
        root: its file system.
        before: the files that there were before anything was installed.
        since: microseconds of Unix time; what the journal holds from before is not shown.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.before: set[str] = set()
        self.since = 0
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    @classmethod
    @contextlib.contextmanager
    def made(cls, *kind: Any) -> Iterator[Machine]:
        """Make a machine with the checkout in it and nothing installed; it is gone afterwards.

        Args:
            kind: of its root file system, as for `build`.
        """
        with copy_of_root(*kind) as root:
            machine = cls(root)
            try:
                (root / CHECKOUT.lstrip("/")).mkdir()
                machine._copy_checkout()
                machine.boot()
                machine.before = machine.files()
                yield machine
            finally:
                machine.power_off()

    @property
    def leader(self) -> int:
        """Its process number 1, as this host sees it."""
        return self._leader

    def boot(self) -> None:
        """Boot, and wait until all units have settled."""
        with (self.root.parent / "log").open("wb") as log:
            self._nspawn = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--directory", self.root, "--boot"),
                    *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_until(self._find_leader)
        self.wait_until(
            lambda: (
                self.run("systemctl", "is-system-running", check=False).stdout.strip()
                in {"running", "degraded"}
            )
        )

    def power_off(self) -> None:
        """Shut down, and wait for the end."""
        if self._nspawn is None:
            return
        self._nspawn.terminate()  # nspawn has the machine shut down in order
        try:
            self._nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._nspawn.kill()
            self._nspawn.wait()
            raise
        finally:
            self._nspawn = None

    def run(
        self, *command: str, user: str = "root", check: bool = True, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        ran = subprocess.run(
            self._entering(user, command),
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=2 * PATIENCE,
        )
        if check:
            assert ran.returncode == 0, f"{command}: {ran.returncode}\n{ran.stdout}{ran.stderr}"
        return ran

    def shell(self, script: str) -> str:
        """Run a script as a person would, who stops at the first error; return its output."""
        return self.run("bash", "-euo", "pipefail", "-c", script).stdout

    def kill(self, pid: int, *, check: bool = True) -> None:
        """Kill a process of the machine."""
        self.run("bash", "-c", f"kill -KILL {pid}", check=check)

    def start(self, *command: str, user: str = "root") -> subprocess.Popen[str]:
        """Start a command in the machine."""
        return subprocess.Popen(
            self._entering(user, command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, path: str, text: str) -> None:
        """Write a file, and its directory."""
        file = self.root / path.lstrip("/")
        # /run and /tmp are mounts in there, which this side does not see.
        assert not path.startswith(("/run", "/tmp")), path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def files(self) -> set[str]:
        """Return every path of the machine but what the system itself writes all the time."""
        own = "-path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/tmp"
        more = "-path /var/log -o -path /root/.cache -o -path /srv -o -path /run -o -name '*-'"
        found = self.shell(
            rf"find / \( {own} -o {more} \) -prune -o -print; find /run -path '/run/trackd*'"
        )
        return set(found.splitlines())

    def drop_in(self, unit: str, text: str) -> None:
        """Give a unit a drop-in; the tests' fixture takes it away again."""
        self.write(f"/etc/systemd/system/{unit}.d/test.conf", text)
        self.run("systemctl", "daemon-reload")

    def status(self, cluster: str) -> dict[str, Any]:
        """Return what the daemon of a cluster says of itself."""
        told: dict[str, Any] = json.loads(
            self.run("trackctl", "--cluster", cluster, "status", "--json").stdout
        )
        return told

    def show(self, unit: str, name: str) -> str:
        """Return a property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).stdout.strip()

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        """Return what the journal holds since the mark, one map of fields for each entry."""
        self.run("journalctl", "--sync")
        out = self.run("journalctl", "--output=json", "--all", *matches).stdout
        entries = map(json.loads, out.splitlines())
        return [each for each in entries if int(each["__REALTIME_TIMESTAMP"]) > self.since]

    def mark(self) -> None:
        """Forget what the journal holds so far."""
        self.since = time.time_ns() // 1000

    def wait_until(self, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Return when the condition is true; fail when it does not become true in time."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "waited in vain"
            time.sleep(0.05)

    def _entering(self, user: str, command: Sequence[str]) -> list[str]:
        enter = ["nsenter", f"--target={self._leader}", *NAMESPACES, "--root", "--"]
        become = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", "--"]
        return [*enter, *CLEAN, *(become if user != "root" else []), *command]

    def _find_leader(self) -> bool:
        """Look for the process that is number 1 of a pid namespace below nspawn's."""
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, "the machine did not boot"
        todo = [self._nspawn.pid]
        while todo:
            pid = todo.pop()
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{pid}/status").read_text()
                if re.search(r"(?m)^NSpid:.*\t1$", status):
                    self._leader = pid
                    return True
                todo.extend(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return False

    def _copy_checkout(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        names = [
            name
            for name in listed.stdout.split(b"\0")
            if (REPOSITORY / os.fsdecode(name)).is_file()
        ]
        subprocess.run(
            ["cp", "--parents", "-t", self.root / CHECKOUT.lstrip("/"), *names],
            cwd=REPOSITORY,
            check=True,
        )


class Agent:
    """An agent in the machine (`agent.py`).

    Attributes:
        pid: its process, as the machine sees it.
        name: what it calls itself; its proxies are named after it.
    """

    def __init__(self, machine: Machine, cluster: str, name: str, user: str = "inside") -> None:
        """Start it, and wait until it holds its claim."""
        self._machine = machine
        self.name = name
        program = f"{CHECKOUT}/tests/systemd/agent.py"
        self._process = machine.start(PYTHON, program, cluster, name, user=user)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.pid = int(self._out.readline())

    def go_on(self) -> None:
        """Wait until it has acquired, claimed and released once more."""
        self._in.write("r")
        self._in.flush()
        assert self._out.readline() == "done\n", f"agent {self.name} failed"

    def end(self) -> list[int]:
        """Let it release its claim and end; return the leases that it was granted."""
        self._in.close()
        granted: list[int] = json.loads(self._out.readline())
        assert self._process.wait(PATIENCE) == 0
        return granted

    def kill(self) -> None:
        """Kill it, if it still runs."""
        self._machine.kill(self.pid, check=False)
        self._process.wait(PATIENCE)
        self._in.close()
        self._out.close()
