"""Python loops compiled to machine code, for the few that numpy has no word for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numba

_F = TypeVar("_F", bound=Callable[..., Any])


def compiled(function: _F) -> _F:
    """Compiled at its first call and kept on disk where there is a place to; runs without the interpreter's lock."""
    try:
        fast: _F = numba.njit(function, cache=True, nogil=True)
    except RuntimeError:  # neither the package's folder nor the user's cache can be written
        fast = numba.njit(function, nogil=True)
    return fast
