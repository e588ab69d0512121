"""Convert frames on the device to the pixels of the checkpoint's image processor.

A resize is linear, so Pillow's response to each unit impulse defines it: two small matrices. Between the passes and
after them values are rounded to uint8, as Pillow does; a test holds the difference to one step of uint8.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image

from training.architecture import IMAGE


def resize_and_crop(frames: torch.Tensor) -> torch.Tensor:
    """Resize RGB uint8 ``[..., 3, H, W]`` bicubically and crop the centre to ``[..., 3, 112, 112]``."""
    height, width = frames.shape[-2:]
    across = _matrix(width, *_edge(width, min(height, width)), frames.device)
    down = _matrix(height, *_edge(height, min(height, width)), frames.device)
    narrow = (frames.float() @ across.T).round_().clamp_(0, 255)
    return (down @ narrow).round_().clamp_(0, 255).to(torch.uint8)


def augment(pixels: torch.Tensor, mirror: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Mirror some of the scenes ``[B, F, 3, h, w]``, and exchange rising and falling contrast in some."""

    def each(flags: torch.Tensor) -> torch.Tensor:
        return flags[:, None, None, None, None]

    pixels = torch.where(each(mirror), pixels.flip(-1), pixels)
    return torch.where(each(inverse), pixels.flip(2), pixels)


def normalise(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """Normalise uint8 ``[..., 3, h, w]`` for the tower."""
    shift, scale = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels.float() / 255 - shift) / scale


def _edge(length: int, shortest: int) -> tuple[int, int]:
    """Return the length after the resize, and the start of the crop."""
    resized = int(IMAGE * length / shortest)
    return resized, (resized - IMAGE) // 2


@cache
def _matrix(length: int, resized: int, start: int, device: torch.device) -> torch.Tensor:
    """Return the resize-and-crop weights ``[112, length]``."""
    impulses = Image.fromarray(np.eye(length, dtype=np.float32))
    weights = np.asarray(impulses.resize((resized, length), Image.Resampling.BICUBIC)).T
    return torch.from_numpy(weights[start : start + IMAGE].copy()).to(device)
