"""Settings: their kinds, defaults and sources, addresses, and the exit codes of what is wrong."""
