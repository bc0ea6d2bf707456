"""Private: the client without threads, event loop or I/O; sync and aio build on it."""
