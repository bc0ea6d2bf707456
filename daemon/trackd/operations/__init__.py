"""From a request on the wire to a change of the state, and to its reply.

Its only I/O is to read /proc and the sizes of files.
"""
