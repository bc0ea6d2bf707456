"""Makes the changes of targets (rule 16): addresses, aims, and how far aims are trusted. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from trackd.rules.mentions import GossipRow
from trackd.rules.registry import Place
from trackd.rules.targets import Address
from trackd.rules.tracker import Tracker
from trackd.rules.user import User
from trackd.state.changes import Addressed, Aimed, Change, TargetsTrusted, hostless


def _address(
    tracker: Tracker, addresses: Mapping[str, Address | None], by: int | None
) -> Iterator[Change]:
    """Yield the change that keeps addresses; none without any."""
    if not addresses:
        return
    known = tracker.targets.by_name
    rows = [
        (name,) if address is None else (name, *hostless(address))
        for name, address in addresses.items()
    ]
    texts = {name: None if each is None else each.text for name, each in addresses.items()}
    before = {name: known[name].text if name in known else None for name in addresses}
    changed = [(name, text) for name, text in texts.items() if text != before[name]]
    yield Addressed(by, rows, changed)


def address_by_gossip(
    tracker: Tracker,
    rows: Sequence[GossipRow],
    moved: Mapping[str, Place | None],
    said: Mapping[str, str],
    now: float,
    by: tuple[int, User],
) -> Iterator[Change]:
    """Yield the change that keeps what gossip says, once its proxies are tracked.

    Args:
        tracker: what is known.
        rows: the message.
        moved: the names that it has tracked or moved.
        said: the addresses that it says, by name; "" withdraws one.
        now: seconds of CLOCK_BOOTTIME.
        by: the number of the session that sent it, and its user.
    """
    number, user = by
    return _address(tracker, tracker.targets.after(rows, moved, said, user, now), number)


def forget(tracker: Tracker, names: Sequence[str]) -> Iterator[Change]:
    """Yield the change that forgets addresses, before their proxies are dropped; no event."""
    if known := tracker.targets.known(names):
        yield Addressed(None, [(name,) for name in known], [])


def end_holds(tracker: Tracker, now: float) -> Iterator[Change]:
    """Yield the change after which grants can carry names again whose hold has ended."""
    return _address(tracker, tracker.targets.due(now), None)


def grant(tracker: Tracker, lease: int, user: User) -> Iterator[Change]:
    """Yield the change that aims a new lease at a proxy, or leaves it out for earlier failures."""
    targets = tracker.targets
    if targets.trust.untargeted:
        yield TargetsTrusted(*targets.trust.left_out())
    elif (aim := targets.next_aim(user)) is not None:
        yield Aimed(lease, *aim)


def fail(tracker: Tracker, lease: int, now: float) -> Iterator[Change]:
    """Yield the changes after the aim of a lease has failed; the lease keeps it."""
    targets = tracker.targets
    yield from _address(tracker, targets.after_failure(lease, now), None)
    trust = targets.trust.failed(lease, tracker.last_lease)
    if trust != targets.trust:
        yield TargetsTrusted(*trust)


def meet(tracker: Tracker, lease: int, name: str, now: float) -> Iterator[Change]:
    """Yield the changes after a dial has reached a name, which a lease holds, or will hold.

    Args:
        tracker: what is known.
        lease: that of the dial.
        name: of the proxy.
        now: seconds of CLOCK_BOOTTIME.
    """
    targets = tracker.targets
    if lease not in targets.aims:
        return
    if targets.aims[lease].name != name:
        yield from fail(tracker, lease, now)
    elif (trust := targets.trust.succeeded()) != targets.trust:
        yield TargetsTrusted(*trust)
    if not tracker.is_available(name):
        yield Aimed(lease, None, None)


def claim(tracker: Tracker, name: str) -> Iterator[Change]:
    """Yield the change that forgets failures before a claim of their name."""
    return _address(tracker, tracker.targets.after_claim(name), None)


def release(tracker: Tracker, name: str, now: float) -> Iterator[Change]:
    """Yield the change that notes since when a released name is missing."""
    return _address(tracker, tracker.targets.after_release(name, now), None)
