"""The version of the package, which every module can read."""

__version__ = "0.2.0"
