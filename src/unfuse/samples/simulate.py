"""A small event-camera simulator for fixtures and the demo: shapes that move before a textured background.

The pixel model is ESIM's (Rebecq et al., CoRL 2018): a pixel remembers a log intensity and fires whenever the present
one has moved a contrast threshold away; between two rendered frames the intensity is taken as linear in time, which
gives each event its microsecond. Thresholds vary over pixels as in v2e (Hu et al., CVPRW 2021). Not modelled:
bandwidth, leak and shot noise, refractory time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream

_BACKGROUND: Final = 0.35
_EPSILON: Final = 0.02  # keeps the logarithm of a black pixel finite


@dataclass(frozen=True, kw_only=True, slots=True)
class Mover:
    """One disc or box that moves on a straight line."""

    shape: str
    """``disc`` or ``box``."""
    position: tuple[float, float]
    """Centre (x, y) at time 0, in pixels."""
    velocity: tuple[float, float]
    """Pixels per second."""
    radius: float
    """Half the width, in pixels."""
    intensity: float
    """Linear, 0 to 1; the background is about 0.35."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is in front of the camera."""

    movers: tuple[Mover, ...]
    pan: tuple[float, float] = (0.0, 0.0)
    """Apparent motion of the background from the camera's own, pixels per second."""
    size: tuple[int, int] = (640, 480)
    """Sensor (width, height)."""
    duration_us: int = 50_000
    step_us: int = 1_000
    """Time between rendered frames."""
    threshold: float = 0.2
    """Contrast threshold in log intensity."""
    threshold_spread: float = 0.03
    """Standard deviation of the threshold over pixels."""
    seed: int = 0


def simulate(scene: Scene) -> EventStream:
    """Events of a scene, sorted by time; the same seed gives the same events."""
    rng = np.random.default_rng(scene.seed)
    width, height = scene.size
    threshold = np.clip(rng.normal(scene.threshold, scene.threshold_spread, (height, width)), 0.05, None)
    texture = _texture(rng)
    memory = _log_intensity(scene, texture, 0.0)
    before = memory.copy()
    memory += rng.uniform(-0.5, 0.5, memory.shape) * threshold
    columns: list[NDArray[np.int64]] = []
    for start in range(0, scene.duration_us, scene.step_us):
        now = _log_intensity(scene, texture, (start + scene.step_us) / 1e6)
        columns.append(_crossings(before, now, memory, threshold, start, scene.step_us))
        before = now
    events = np.concatenate(columns, axis=1)
    t, y, x, p = events[:, np.lexsort((events[2], events[1], events[0]))]
    return EventStream.from_arrays(
        x.astype(np.uint16), y.astype(np.uint16), t, p.astype(np.uint8), sensor_size=scene.size
    )


def _crossings(
    before: NDArray[np.float64],
    now: NDArray[np.float64],
    memory: NDArray[np.float64],
    threshold: NDArray[np.float64],
    start_us: int,
    step_us: int,
) -> NDArray[np.int64]:
    """Rows t, y, x, p of one step's events; moves ``memory`` along."""
    counts = np.trunc((now - memory) / threshold).astype(np.int64)
    y, x = counts.nonzero()
    fired = counts[y, x]
    repeats = np.abs(fired)
    owner = np.repeat(np.arange(len(fired)), repeats)
    ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
    sign = np.sign(fired)
    level = memory[y, x][owner] + ordinal * (sign * threshold[y, x])[owner]
    low, high = before[y, x][owner], now[y, x][owner]
    moved = np.where(high == low, 1.0, high - low)
    t = start_us + np.clip((level - low) / moved, 0.0, 1.0) * step_us
    memory[y, x] += fired * threshold[y, x]
    return np.stack([t.astype(np.int64), y[owner], x[owner], (sign[owner] > 0).astype(np.int64)])


def _log_intensity(scene: Scene, texture: NDArray[np.float64], seconds: float) -> NDArray[np.float64]:
    width, height = scene.size
    x = np.arange(width, dtype=np.float64)
    y = np.arange(height, dtype=np.float64)[:, None]
    shifted_x, shifted_y = x - scene.pan[0] * seconds, y - scene.pan[1] * seconds
    image = np.full((height, width), _BACKGROUND)
    for amplitude, kx, ky, phase in texture:
        image += amplitude * np.sin(kx * shifted_x + ky * shifted_y + phase)
    for mover in scene.movers:
        cx = mover.position[0] + mover.velocity[0] * seconds
        cy = mover.position[1] + mover.velocity[1] * seconds
        distance = np.hypot(x - cx, y - cy) if mover.shape == "disc" else np.maximum(abs(x - cx), abs(y - cy))
        # One pixel of blur at the rim lets an edge pass a pixel gradually, as optics do.
        cover = np.clip(mover.radius - distance + 0.5, 0.0, 1.0)
        image += cover * (mover.intensity - image)
    log: NDArray[np.float64] = np.log(np.clip(image, 0.0, 1.0) + _EPSILON)
    return log


def _texture(rng: np.random.Generator) -> NDArray[np.float64]:
    waves = 6
    wavelength = rng.uniform(12, 60, waves)
    angle = rng.uniform(0, np.pi, waves)
    k = 2 * np.pi / wavelength
    return np.stack(
        [
            rng.uniform(0.02, 0.05, waves),
            k * np.cos(angle),
            k * np.sin(angle),
            rng.uniform(0, 2 * np.pi, waves),
        ],
        1,
    )
