"""The live display of `trackctl top`."""
