"""Private: what client and daemon share of the wire. Imports neither sync nor aio."""
