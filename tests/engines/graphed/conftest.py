"""Kernels run in an interpreter if there is no GPU: as few programs as cover every path."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from tests.engines.graphed.small import DEVICE
from unfuse.engines.graphed import engine, gemm, tuned_configs
from unfuse.engines.graphed.kernels import extend_attention, gemv, skinny_gemm

_COMPARE = engine.GraphedEngine._compare


def quicken(patch):
    """Skip repeated work of the interpreter, half of its time; no value that it computes changes.

    The interpreter patches the language for each function that a program calls, though the program's own start has
    done so. It builds a table of all types, the shape and the name of a type for each operation.
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

    of_scalar = cache(interpreter._get_np_dtype)

    def numpy_type(given):
        scalar = given.scalar
        return np.dtype(np.uint64) if isinstance(scalar, tl.pointer_type) else of_scalar(scalar)

    patch.setattr(interpreter.InterpretedFunction, "__call__", call)
    patch.setattr(interpreter, "_get_np_dtype", numpy_type)
    _share_shapes(patch, tl.core)


def _share_shapes(patch, core):
    """Build the shape of a block type, and that of a tensor, once for all operations."""
    new_block_type = core.block_type.__init__

    shapes = {}

    def block_type(made, element_type, shape):
        made.element_ty = element_type
        sizes = tuple([size.value if type(size) is core.constexpr else size for size in shape])
        key = element_type.name, sizes
        if key not in shapes:
            new_block_type(made, element_type, list(sizes))
            shapes[key] = made.shape, made.numel, made.name
        made.shape, made.numel, made.name = shapes[key]

    @cache
    def of_tensor(sizes):
        return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(math.prod(sizes))

    def tensor(made, handle, kind):
        made.handle, made.type, made.dtype = handle, kind, kind.scalar
        made.shape, made.numel = of_tensor(tuple(kind.shape.values) if kind.is_block() else ())

    different = core.tuple.__eq__

    def equal(one, other):
        return core.constexpr(True) if one is other else different(one, other)

    patch.setattr(core.tuple, "__eq__", equal)
    patch.setattr(core.block_type, "__init__", block_type)
    patch.setattr(core.tensor, "__init__", tensor)


def use_few_programs(patch):
    """Let each kernel run as few programs as show every path: the interpreter runs one after the other."""
    from triton.runtime import interpreter

    quicken(patch)
    # The kernels' own tests look at every sum and product of integers in a wider type.
    patch.setattr(interpreter.interpreter_builder, "options", interpreter.InterpreterOptions(sanitize_overflow=False))
    patch.setattr(gemv, "CANDIDATES", (gemv.GemvConfig(64, 64, 4, True),))
    patch.setattr(skinny_gemm, "CANDIDATES", (skinny_gemm.SkinnyGemmConfig(64, 16, 2, 2, 4),))
    patch.setattr(gemm, "LIBRARY", skinny_gemm.CANDIDATES[0])
    patch.setattr(extend_attention, "CANDIDATES", (extend_attention.ExtendConfig(2, 64, 8, 3),))
    patch.setattr(extend_attention, "FLOAT32_CONFIG", extend_attention.ExtendConfig(2, 64, 8, 3))
    # Every engine compares itself on being made; these tests compare it themselves, on longer prompts.
    patch.setattr(engine.GraphedEngine, "_compare", lambda _: None)
    # One program for each of four key heads; the kinds with fewer share a head's positions out.
    patch.setattr(tuned_configs, "_PROGRAMS", 3)


@pytest.fixture(scope="module", autouse=True)
def quick_interpreter():
    """Skip repeated work of the interpreter."""
    if DEVICE.type == "cuda":
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        yield


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
