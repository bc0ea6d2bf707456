"""An asyncio agent: an ssh tunnel to every bastion, on asyncssh. See docs/ssh.md.

Usage: asyncssh_agent.py USER@BALANCER:PORT HOST_PORT BASTION_PORT
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncssh
from asyncssh.public_key import decode_ssh_certificate

from trackd_client import AsyncAgentPool, AsyncLease, AsyncTracker, DialFailed

PLACE = Path(os.environ.get("TRACKD_SSH", "/etc/trackd/ssh"))


class Client(asyncssh.SSHClient):
    """Claims the bastion by the names in its certificate, before it authenticates."""

    def __init__(self, lease: AsyncLease) -> None:
        self.lease = lease

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Look at the certificate where asyncssh checks it: it shows its names to nobody."""
        check = conn.validate_server_host_key

        def see(certificate: bytes) -> asyncssh.SSHKey:
            self.names = {*decode_ssh_certificate(certificate).principals} - {"bastions"}
            return check(certificate)

        conn.validate_server_host_key = see

    async def public_key_auth_requested(self) -> str | None:
        """Claim; without a claim there is no key, and so no tunnel."""
        return str(PLACE / "id_ed25519") if await self.lease.claim(*sorted(self.names)) else None


async def main(balancer: str, host_port: int, bastion_port: int) -> None:
    """Keep tunnels until SIGTERM."""
    user, _, address = balancer.rpartition("@")
    host, _, port = address.rpartition(":")
    authority = f"@cert-authority * {(PLACE / 'host_ca.pub').read_text()}"

    async def dial(lease: AsyncLease) -> None:
        try:
            connection = await asyncssh.connect(
                host,
                int(port),
                username=user,
                client_factory=lambda: Client(lease),
                host_key_alias="bastions",
                known_hosts=asyncssh.import_known_hosts(authority),
                server_host_key_algs=["ssh-ed25519-cert-v01@openssh.com"],
                client_keys=None,
                agent_path=None,
                config=None,
                preferred_auth="publickey",
                connect_timeout=10,
                keepalive_interval=3,
            )
        except asyncssh.PermissionDenied:
            if lease.claimed_name is None:
                return  # another lease holds this bastion
            raise DialFailed("auth") from None
        async with connection:
            lease.on_close(connection.abort)
            await connection.forward_remote_port("127.0.0.1", bastion_port, "127.0.0.1", host_port)
            async with connection.create_process() as gossip:
                async for line in gossip.stdout:  # until either side closes the tunnel
                    await pool.feed(line)

    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with (
        AsyncTracker(name="asyncssh example") as tracker,
        AsyncAgentPool(tracker, dial) as pool,
    ):
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
