"""Event frames drawn on the model's device, equal to those of ``frames``."""

from __future__ import annotations

import numpy as np
import torch

from unfuse.events.frames import SizeRule, frame_size
from unfuse.events.stream import EventStream
from unfuse.events.windows import split_equal_count


def event_frame_on(stream: EventStream, device: torch.device, *, size: SizeRule = "events") -> torch.Tensor:
    """Draw one frame on a device.

    GPU threads reach a pixel in any order. So a thread writes no color but raises the pixel's highest event number: a
    maximum of integers does not depend on the order.

    Returns:
        RGB uint8 ``[H, W, 3]``, equal to ``event_frame``.

    Raises:
        EventStreamError: no events, or the sensor's size is not known.
    """
    width, height = frame_size(stream, size)
    # uint16 has few operations in torch: four bytes an event cross the bus, and one of polarity.
    packed = torch.from_numpy(stream.y.astype(np.int32) * width + stream.x).to(device)
    polarity = torch.from_numpy(stream.p.copy()).to(device)
    number = torch.arange(len(stream), dtype=torch.int32, device=device)
    last = torch.full((height * width,), -1, dtype=torch.int32, device=device)
    last.scatter_reduce_(0, packed.long(), number, "amax")
    fired = last >= 0
    brighter = fired & (polarity[last.clamp(min=0)] != 0) if len(stream) else fired
    darker = fired & ~brighter
    frame = torch.stack([~darker, ~fired, ~brighter], 1).to(torch.uint8) * 255
    return frame.view(height, width, 3)


def event_frames_on(
    stream: EventStream, device: torch.device, num_frames: int = 5, *, size: SizeRule = "events"
) -> list[torch.Tensor]:
    """Split a stream into runs of equal event count and draw each on a device.

    Raises:
        EventStreamError: fewer events than frames, or the sensor's size is asked for and not known.
    """
    return [event_frame_on(run, device, size=size) for run in split_equal_count(stream, num_frames)]
