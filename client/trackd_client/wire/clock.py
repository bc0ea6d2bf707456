"""The clock of the protocol: seconds since boot, suspended time included (CLOCK_BOOTTIME)."""

from __future__ import annotations

import time
from pathlib import Path


def boottime() -> float:
    """Return seconds of CLOCK_BOOTTIME, as a container's time namespace may shift it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_id() -> str:
    """Return the kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def suspended_seconds() -> float:
    """Return for how many seconds the host has been suspended since its boot."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
