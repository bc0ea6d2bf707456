"""Agents claim reverse-tunnel proxies through the trackd daemon of their host."""
