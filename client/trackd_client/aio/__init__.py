"""Private: the client for asyncio, with the file names of sync.

There is no keeper, since tasks and timers of the loop do its work, and no ending: a session that
outlives its tracker is ended by the thread of `trackd_client.sync.ending`, for which no loop needs
to run. Its public names are those of `trackd_client`.
"""
