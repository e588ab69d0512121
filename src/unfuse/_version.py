"""The version of the package, for every module to read."""

__version__ = "0.2.0"
