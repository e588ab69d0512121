"""Event frames on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from unfuse.events import event_frames
from unfuse.events.on_device import event_frames_on
from unfuse.testing import synthetic_stream

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_event_frames_are_those_of_the_cpu():
    """Many events a pixel, so that threads do race."""
    stream = synthetic_stream(2_000_000, size=(64, 48))
    expected = event_frames(stream)
    for _ in range(5):
        for drawn, frame in zip(event_frames_on(stream, torch.device("cuda")), expected, strict=True):
            assert (drawn.cpu().numpy() == frame).all()
