"""The version of the distribution: it stands in this line only."""

__version__ = "0.1.0"
