"""trackd: the daemon that shares reverse-tunnel leases among the agents of one host."""
