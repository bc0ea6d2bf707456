"""What happens to ssh tunnels in production, one fault after the other.

Each fault does the damage, and mends what people would mend. What is left to the agents is what is
tested and measured then. Seconds are those of `Site.pause`: a short form of it scales them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from helpers.ssh_site import Site


class Fault(NamedTuple):
    """A fault.

    Attributes:
        title: what happens.
        happen: lets it happen, and returns when it is over.
    """

    title: str
    happen: Callable[[Site], None]


def restart(site: Site) -> None:
    site.stop_bastion("b1")
    site.pause(2)
    site.start_bastion("b1")


def kill(site: Site) -> None:
    site.kill_bastion("b2")
    site.pause(2)
    site.start_bastion("b2")


def freeze(site: Site) -> None:
    with site.suspended("b3"):
        site.pause(12)


def drain(site: Site) -> None:
    site.set_server("b1", "drain")
    site.write_gossip("b1 terminating", *(name for name in site.wanted if name != "b1"))
    site.pause(4)
    site.stop_bastion("b1")
    site.pause(2)
    site.start_bastion("b1")
    site.set_server("b1", "ready")
    site.write_gossip(*site.wanted)


def restart_all(site: Site) -> None:
    for name in site.wanted:
        site.stop_bastion(name)
        site.pause(2)
        site.start_bastion(name)
        site.pause(3)


def add_two(site: Site) -> None:
    site.add_bastions("new1", "new2")


def remove_one(site: Site) -> None:
    site.remove_bastion("b2")


def reload_balancer(site: Site) -> None:
    site.reload_balancer()


def balancer_away(site: Site) -> None:
    site.stop_balancer()
    site.pause(15)
    site.start_balancer()


def kill_agent(site: Site) -> None:
    site.kill_script()
    site.kill_agent("unit0")


def daemon_away(site: Site) -> None:
    if site.daemon is not None:
        site.daemon.stop()
    site.stop_bastion("b3")
    site.pause(2)
    site.start_bastion("b3")
    site.pause(4)
    if site.daemon is not None:
        site.daemon.start()


def suspend_agent(site: Site) -> None:
    with site.suspended("unit0"):
        site.pause(20)


def hang(site: Site) -> None:
    site.add_hole()
    site.stop_bastion("b1")
    site.pause(2)
    site.start_bastion("b1")
    site.pause(10)
    site.remove_hole()


FAULTS: Final = (
    Fault("cold start", Site.start_units),
    Fault("a bastion restarts", restart),
    Fault("a bastion is killed", kill),
    Fault("a bastion hangs for 12 s", freeze),
    Fault("a bastion is drained and restarts", drain),
    Fault("all restart in turn", restart_all),
    Fault("two bastions are added", add_two),
    Fault("a bastion is removed", remove_one),
    Fault("the balancer is reloaded", reload_balancer),
    Fault("the balancer is away for 15 s", balancer_away),
    Fault("an agent and a script are killed", kill_agent),
    Fault("the daemon is away for 6 s", daemon_away),
    Fault("an agent is suspended for 20 s", suspend_agent),
    Fault("dials hang while a bastion restarts", hang),
)
