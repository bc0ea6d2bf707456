"""`trackd demo`: a daemon and real agents against simulated proxies, played in scenes.

| module | what it is |
| --- | --- |
| `network` | the simulated load balancer, the proxies behind it, and the ledger of what they saw |
| `agent` | the agent process, as a user would write it: only on `trackd_client` |
| `children` | child processes that cannot outlive the demo |
| `stage` | one daemon, its agents and the network, and how to wait for something to be true |
| `scenes` | what is played, and what must be true at the end of each scene |
| `view` | what a person sees: live, or one line an event |

The demo talks to its daemon as any agent does. It never touches a daemon that it did not start.
"""

import argparse


def main(args: argparse.Namespace) -> int:
    """Plays all scenes.

    Args:
        args: `agents` and `proxies` (how many, at least 1), `seed` (an int, or None to draw
            one), `plain` (no live display).

    Returns:
        0 when every check held, 1 when one did not, and 128 plus the signal when a signal ended
        it.
    """
    # Late, because the agents import this package too and need none of it.
    import asyncio

    from trackd.demo.scenes import perform

    return asyncio.run(
        perform(agents=args.agents, proxies=args.proxies, seed=args.seed, plain=args.plain)
    )
