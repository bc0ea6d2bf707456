"""Private: the client for asyncio, with the file names of sync.

Its public names are those of `trackd_client`.
"""
