"""The kernel, the files and the journal of this host."""
