"""Fixtures for cases that run against both clients; a module may have its own instead."""

from helpers.both_clients import daemon, maker, shared_daemon

__all__ = ["daemon", "maker", "shared_daemon"]
