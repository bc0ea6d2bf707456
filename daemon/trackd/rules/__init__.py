"""The rules of the tracker, pure: no I/O, no threads, no clock of their own."""

from trackd.rules.tracker import Tracker

__all__ = ["Tracker"]
