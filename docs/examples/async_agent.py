"""An asyncio agent: a tunnel to every proxy. Usage: async_agent.py HOST:PORT."""

import asyncio
import json
import signal
import sys

from trackd_client import AsyncAgentPool, AsyncLease, AsyncTracker


async def main(address: str) -> None:
    """Keep tunnels open until the process ends."""
    host, port = address.rsplit(":", 1)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)

    async def dial(lease: AsyncLease) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        lease.on_close(writer.close)
        try:
            principals = json.loads(await reader.readline())["principals"]
            if await lease.claim(*principals):
                writer.write(b"keep\n")
                async for gossip in reader:  # until either side closes the tunnel
                    await pool.feed(gossip)
        finally:
            writer.close()

    async with AsyncTracker(name="asyncio example") as tracker:
        pool = AsyncAgentPool(tracker, dial)
        async with pool:
            await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
