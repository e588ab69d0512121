"""Engines: implementations of Stage 4 behind one protocol."""

from typing import Final

from unfuse.engines.base import Engine

ENGINES: Final = ("auto", "eager", "graphed", "vllm")

__all__ = ["ENGINES", "Engine"]
