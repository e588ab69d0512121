"""Choice of the engine of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from unfuse.adapters.base import Adapter
from unfuse.engines import ENGINES, Engine
from unfuse.engines.fused_only import FusedOnly
from unfuse.errors import CutError, DeviceError
from unfuse.unavailable import Unavailable

if TYPE_CHECKING:
    from torch import nn


def pick_engine(name: str, adapter: Adapter) -> tuple[Engine, tuple[str, ...]]:
    """Return the engine of that name, with notes about the choice.

    ``auto`` is ``graphed`` on a CUDA device and ``eager`` elsewhere. If ``graphed`` or ``vllm`` does not support the
    model or the device, ``eager`` replaces it, and a note has the reason. A model that is not splittable has no engine.

    Raises:
        DeviceError: no such engine.
    """
    if name not in ENGINES:
        raise DeviceError("engine", found=repr(name), expected=", ".join(ENGINES))
    if adapter.unsplittable is not None:
        return FusedOnly(adapter.unsplittable.reason), ()
    from unfuse.engines.eager import EagerEngine

    if name == "eager" or (name == "auto" and adapter.device.type != "cuda"):
        return EagerEngine(adapter.language), ()
    wanted = "vllm" if name == "vllm" else "graphed"
    if adapter.device.type != "cuda":
        engine: Engine | Unavailable = Unavailable(f"it needs a CUDA device, and the model is on {adapter.device}")
    else:
        engine = _vllm(adapter) if wanted == "vllm" else _graphed(adapter)
    if isinstance(engine, Unavailable):
        return EagerEngine(adapter.language), (f"engine eager instead of {wanted}: {engine.reason}",)
    return engine, ()


def _graphed(adapter: Adapter) -> Engine | Unavailable:
    try:
        from triton.errors import TritonError
    except ImportError:
        return Unavailable("triton is not installed")
    from unfuse.engines.graphed.engine import GraphedEngine
    from unfuse.engines.unsupported import Unsupported

    try:
        return GraphedEngine(adapter.language, _vision(adapter))
    except Unsupported as reason:
        return Unavailable(str(reason))
    except (RuntimeError, TritonError) as reason:
        # Too little memory, or a device that Triton does not support: a slow answer is better than none.
        return _unbuilt(reason)


def _vllm(adapter: Adapter) -> Engine | Unavailable:
    from unfuse.engines.unsupported import Unsupported

    try:
        from unfuse.engines.vllm.engine import VllmEngine

        return VllmEngine(adapter.language, _vision(adapter))
    except Unsupported as reason:
        return Unavailable(str(reason))
    except (ImportError, RuntimeError, ValueError, NotImplementedError, AssertionError) as reason:
        # A torch that vLLM was not compiled for, sizes without a kernel, or too little memory.
        return _unbuilt(reason)


def _unbuilt(reason: Exception) -> Unavailable:
    line = next(iter(str(reason).strip().splitlines()), "")
    return Unavailable(f"it could not be built ({type(reason).__name__}: {line})")


def _vision(adapter: Adapter) -> Mapping[str, nn.Module]:
    try:
        return adapter.vision_modules()
    except CutError:
        return {}  # the model's own encoder runs
