"""Kernels run in an interpreter if there is no GPU: as few programs as cover every path."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.engines.graphed.small import DEVICE
from unfuse.engines.graphed import engine, gemm, tuned_configs
from unfuse.engines.graphed.kernels import extend_attention, gemv, skinny_gemm

_COMPARE = engine.GraphedEngine._compare


def quicken(patch):
    """Skips repeated work of the interpreter; the kernels' own tests run without this.

    It patches the language for each function that a program calls, though the program's own start has done so, and
    looks at every sum and product of integers in a wider type. A third to a half of the time, together.
    """
    from triton import language as tl
    from triton.runtime import interpreter

    @cache
    def languages(code):
        return [module for module in (tl, tl.core) if any(each is module for each in code.__globals__.values())]

    def call(function, *args, **kwargs):
        if any(tl.core.is_builtin(module.load) for module in languages(function.fn)):
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*args, **kwargs)

    patch.setattr(interpreter.InterpretedFunction, "__call__", call)
    patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False))
    of_scalar = cache(interpreter._get_np_dtype)  # it builds a table of all types for each operation

    def numpy_type(given):
        scalar = given.scalar
        return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    patch.setattr(interpreter, "_get_np_dtype", numpy_type)


def use_few_programs(patch):
    """Let each kernel run as few programs as show every path: the interpreter runs one after the other."""
    quicken(patch)
    patch.setattr(gemv, "CANDIDATES", (gemv.GemvConfig(64, 64, 4, True),))
    patch.setattr(skinny_gemm, "CANDIDATES", (skinny_gemm.SkinnyGemmConfig(64, 16, 2, 2, 4),))
    patch.setattr(gemm, "LIBRARY", skinny_gemm.CANDIDATES[0])
    patch.setattr(extend_attention, "CANDIDATES", (extend_attention.ExtendConfig(2, 64, 8, 3),))
    patch.setattr(extend_attention, "FLOAT32_CONFIG", extend_attention.ExtendConfig(2, 64, 8, 3))
    # Every engine compares itself on being made; these tests compare it themselves, on longer prompts.
    patch.setattr(engine.GraphedEngine, "_compare", lambda _: None)
    # One program for each of four key heads; the kinds with fewer share a head's positions out.
    patch.setattr(tuned_configs, "_PROGRAMS", 3)


@pytest.fixture(scope="module")
def few_programs():
    """Run few programs of each kernel if there is no GPU."""
    if DEVICE.type == "cuda":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        use_few_programs(patch)
        yield


@pytest.fixture
def compared_in_full(monkeypatch):
    """An engine that is made compares itself, as it does outside the tests."""
    monkeypatch.setattr(engine.GraphedEngine, "_compare", _COMPARE)
