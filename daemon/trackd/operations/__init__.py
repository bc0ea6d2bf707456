"""From a request on the wire to a change of the state, and to its reply. Reads /proc; no other I/O."""
