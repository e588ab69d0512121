"""Frames on the device to the pixels of the checkpoint's image processor.

A resize is linear, so what Pillow does to each unit impulse is all of it: two small matrices. Between the passes and
after them values are rounded to uint8, as Pillow does; a test holds the difference to one step of uint8.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from PIL import Image

from training.architecture import IMAGE


def cropped(frames: torch.Tensor) -> torch.Tensor:
    """RGB uint8 ``[..., 3, H, W]`` to ``[..., 3, 112, 112]``: shortest edge bicubic, centre crop."""
    height, width = frames.shape[-2:]
    across = _matrix(width, *_edge(width, min(height, width)), frames.device)
    down = _matrix(height, *_edge(height, min(height, width)), frames.device)
    narrow = (frames.float() @ across.T).round_().clamp_(0, 255)
    return (down @ narrow).round_().clamp_(0, 255).to(torch.uint8)


def varied(pixels: torch.Tensor, mirror: torch.Tensor, inverse: torch.Tensor) -> torch.Tensor:
    """Some of the scenes ``[B, F, 3, h, w]`` seen in a mirror, some with rising and falling contrast exchanged."""

    def each(flags: torch.Tensor) -> torch.Tensor:
        return flags[:, None, None, None, None]

    pixels = torch.where(each(mirror), pixels.flip(-1), pixels)
    return torch.where(each(inverse), pixels.flip(2), pixels)


def normalised(pixels: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    """uint8 ``[..., 3, h, w]`` to what the tower takes."""
    shift, scale = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
    return (pixels.float() / 255 - shift) / scale


def _edge(length: int, shortest: int) -> tuple[int, int]:
    """Length after the resize, and where the crop begins."""
    resized = int(IMAGE * length / shortest)
    return resized, (resized - IMAGE) // 2


@cache
def _matrix(length: int, resized: int, start: int, device: torch.device) -> torch.Tensor:
    """Weights ``[112, length]``."""
    impulses = Image.fromarray(np.eye(length, dtype=np.float32))
    weights = np.asarray(impulses.resize((resized, length), Image.Resampling.BICUBIC)).T
    return torch.from_numpy(weights[start : start + IMAGE].copy()).to(device)
