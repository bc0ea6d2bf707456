"""The daemon's state: what it knows, every change of it, and its restart. No I/O."""
