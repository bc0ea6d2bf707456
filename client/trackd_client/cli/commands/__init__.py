"""The commands of `trackctl`, one file each."""
