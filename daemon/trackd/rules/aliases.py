"""The names by which gossip may come to call proxies that were claimed before it did (rule 7)."""

from collections.abc import Iterable, Sequence


class Aliases:
    """The leases that follow gossip, and the names that their proxies presented.

    Attributes:
        by_lease: of each such lease the names, in the order in which they count.
    """

    __slots__ = ("_by_name", "by_lease")

    def __init__(self) -> None:
        self.by_lease: dict[int, Sequence[str]] = {}
        self._by_name: dict[str, set[int]] = {}

    def add(self, lease: int, names: Iterable[str]) -> None:
        """Let a lease follow gossip to any of these names."""
        self.by_lease[lease] = tuple(names)
        for name in self.by_lease[lease]:
            self._by_name.setdefault(name, set()).add(lease)

    def drop(self, lease: int) -> None:
        """Forget a lease, which may be unknown."""
        for name in self.by_lease.pop(lease, ()):
            leases = self._by_name[name]
            leases.remove(lease)
            if not leases:
                del self._by_name[name]

    def leases_of(self, name: str) -> list[int]:
        """Return the leases that follow gossip to a name, the oldest first."""
        return sorted(self._by_name.get(name, ()))
