"""All that the daemon knows together, and each way in which it changes. No I/O."""
