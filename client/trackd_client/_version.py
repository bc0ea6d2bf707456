"""The version of the distribution: this line alone says it."""

__version__ = "0.1.0"
