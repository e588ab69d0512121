"""Take a multimodal LLM's fused ``generate()`` apart: run, time and verify each stage alone.

Importing this package imports no torch and touches no device; heavy modules load on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from unfuse._version import __version__ as __version__

if TYPE_CHECKING:
    from unfuse.api import bench, run, verify
    from unfuse.errors import UnfuseError
    from unfuse.features import Features
    from unfuse.loading import load
    from unfuse.samples import Sample
    from unfuse.stages import Generation, Sampling

__all__ = ["Features", "Generation", "Sample", "Sampling", "UnfuseError", "bench", "load", "run", "verify"]

_HOMES = {
    "Features": "unfuse.features",
    "Generation": "unfuse.stages",
    "Sample": "unfuse.samples",
    "Sampling": "unfuse.stages",
    "UnfuseError": "unfuse.errors",
    "bench": "unfuse.api",
    "load": "unfuse.loading",
    "run": "unfuse.api",
    "verify": "unfuse.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
