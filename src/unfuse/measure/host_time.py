"""The host's clock. Everything that times a stage reads it here, so a test replaces it in one place."""

from __future__ import annotations

import time
from collections.abc import Callable

now_ns: Callable[[], int] = time.perf_counter_ns
"""Monotonic time in ns; the builtin itself, so that a reading costs no further call."""
