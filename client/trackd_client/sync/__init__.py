"""Private: the client for threads. Its public names are those of `trackd_client`."""
