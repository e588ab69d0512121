"""Compiles Python loops that numpy cannot express to machine code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compile a function at its first call, and cache it on disk if possible. It runs without the GIL."""
    try:
        fast: _F = numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # neither the package's folder nor the user's cache is writable
        fast = numba.njit(function, nogil=True)
    return fast
