"""Training scenes: simulated once on the device, stored in parts on disk, held in device memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from training.device_simulator import colours, draw_batch, frames_of, simulate_batch
from training.pixels import resize_and_crop
from unfuse.samples.demo.scenes import CAMERAS, DIRECTIONS, PLACES, SceneFacts, demo_scene
from unfuse.samples.simulator import SHAPES, SimulatedScene

_PART: Final = 4096
"""Scenes per file."""
_BATCH: Final = 128

TRAINING_SEEDS: Final = 0
VALIDATION_SEEDS: Final = 20_000_000
HELD_OUT: Final = 512
"""Number of scenes of the exams during training."""
FRAMES: Final = 5


@dataclass(frozen=True, slots=True)
class Pool:
    """Scenes as input of the tower."""

    seeds: range
    pixels: torch.Tensor
    """uint8 ``[N, F, 3, 112, 112]``"""


def make_pool(folder: Path, seeds: range, device: torch.device, log: Callable[[str], None]) -> Pool:
    """Simulate the scenes that the folder lacks, and read all.

    Args:
        folder: holds the parts; a part is complete or absent.
        seeds: one per scene.
        device: device that simulates and stores the scenes.
        log: called for each simulated part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(seeds.start, seeds.stop, _PART):
        part = range(first, min(first + _PART, seeds.stop))
        path = folder / f"scenes-{part.start}-{part.stop}.safetensors"
        if path.is_file():
            parts.append(load_file(path)["pixels"].to(device))
            continue
        start = time.perf_counter()
        pixels = torch.cat(
            [
                simulate_pixels(range(i, min(i + _BATCH, part.stop)), device)
                for i in range(part.start, part.stop, _BATCH)
            ]
        )
        partial = path.with_suffix(".partial")
        save_file({"pixels": pixels.cpu()}, partial)
        partial.rename(path)
        log(f"scenes {part.start} to {part.stop}: {time.perf_counter() - start:.1f} s")
        parts.append(pixels)
    return Pool(seeds, torch.cat(parts))


def simulate_pixels(seeds: Sequence[int], device: torch.device) -> torch.Tensor:
    """Simulate a few scenes; return their pixels, uint8 ``[B, F, 3, 112, 112]``."""
    batch = draw_batch([demo_scene(seed)[0] for seed in seeds], device, torch.float32)
    index, _, p = simulate_batch(batch)
    return resize_and_crop(colours(frames_of(index, p, batch.shape, FRAMES)))


def class_targets(facts: SceneFacts) -> list[int]:
    """Return the classes of a scene, one per auxiliary head, in the order of ``HEADS``."""
    by_shape = {mover.shape: mover for mover in facts.movers}
    directions = [1 + DIRECTIONS.index(by_shape[s].direction) if s in by_shape else 0 for s in SHAPES]
    places = [1 + PLACES.index(by_shape[s].place) if s in by_shape else 0 for s in SHAPES]
    fastest = 1 + SHAPES.index(facts.fastest) if facts.fastest else 0
    return [*directions, *places, fastest, CAMERAS.index(facts.camera), int(facts.flicker)]


HEADS: Final = (
    *[(f"direction {shape}", 1 + len(DIRECTIONS)) for shape in SHAPES],
    *[(f"place {shape}", 1 + len(PLACES)) for shape in SHAPES],
    ("fastest", 1 + len(SHAPES)),
    ("camera", len(CAMERAS)),
    ("flicker", 2),
)
"""Name and number of classes of each auxiliary head."""


def track_targets(scene: SimulatedScene, *, mirrored: bool = False) -> list[list[float]]:
    """Return for each frame and shape: 1 if present, then centre and radius in units of the picture's height.

    Returns:
        ``[F][S * 4]``; frames of equal event count are treated as frames of equal time, a sufficient approximation.
    """
    height = scene.size[1]
    rows = []
    for frame in range(FRAMES):
        seconds = (frame + 0.5) / FRAMES * scene.duration_us / 1e6
        row = [0.0] * (4 * len(SHAPES))
        for mover in scene.movers:
            x, y = (p + v * seconds for p, v in zip(mover.position, mover.velocity, strict=True))
            centred = (-1 if mirrored else 1) * (x - scene.size[0] / 2) / height, (y - height / 2) / height
            at = 4 * SHAPES.index(mover.shape)
            row[at : at + 4] = [1.0, *centred, mover.radius * (1 + mover.growth * seconds) / height]
        rows.append(row)
    return rows
