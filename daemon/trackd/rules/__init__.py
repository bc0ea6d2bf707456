"""The rules of the tracker (docs/rules.md), pure: no I/O, no threads, no clock of their own."""

from trackd.rules.tracker import Tracker

__all__ = ["Tracker"]
