"""The host's clock: every stage is timed by it, so a test replaces it here alone."""

from __future__ import annotations

import time
from collections.abc import Callable

now_ns: Callable[[], int] = time.perf_counter_ns
"""Monotonic time in ns; the builtin itself, so that a reading costs no further call."""


def is_system() -> bool:
    """Return whether times come from the system, with its noise, and not from a test."""
    return now_ns is time.perf_counter_ns
