"""A recording that the tests of readers write in every format."""

from __future__ import annotations

from unfuse.testing import synthetic_stream

STREAM = synthetic_stream(60_000, size=(640, 480), duration_us=150_000)
