"""Who owns which leases and who waits, pure: no I/O, no threads."""
