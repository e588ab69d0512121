"""What runs Stage 4, behind one protocol."""

from unfuse.engines.base import Engine

__all__ = ["Engine"]
