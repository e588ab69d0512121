"""Compute the times of the events that the pixels of an event camera fire.

A pixel remembers a log intensity and fires whenever the present intensity has moved a contrast threshold away; between
two rendered frames the intensity is linear in time, so that each event gets its microsecond (ESIM: Rebecq et al., CoRL
2018). Thresholds vary over pixels, separately for rising and falling contrast. Leak events rise without a change; shot
noise fires at random, more often in the dark; a pixel is silent for its refractory time (v2e: Hu et al., CVPRW 2021).

Limits: the photoreceptor follows at any speed (v2e's bandwidth in dim light is not modelled), noise events do not move
a pixel's memory, the refractory time drops an event without delaying it, and pixels are not read out in rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream
from unfuse.samples.simulator.render import BACKGROUND, SceneRenderer, draw_texture
from unfuse.samples.simulator.scene import SimulatedScene

LOWEST_THRESHOLD: Final = 0.05
"""Threshold of the most sensitive pixel."""

Array = NDArray[np.float64]
Events = NDArray[np.int64]
"""Rows t, y, x, p."""


@dataclass(frozen=True, slots=True)
class Randomness:
    """Everything random about one recording."""

    texture: Array
    """Waves of the background: rows (amplitude, kx, ky, phase)."""
    rising: Array
    """Threshold of each pixel for rising contrast, ``[H, W]``."""
    falling: Array
    """Threshold of each pixel for falling contrast, ``[H, W]``."""
    start: Array
    """Offset of each pixel's memory above its first log intensity, ``[H, W]``."""
    noise: Events
    """Shot noise."""


def simulate(scene: SimulatedScene) -> EventStream:
    """Return the events of a scene, sorted by time, then row, then column; equal seeds give equal events.

    Raises:
        EventStreamError: nothing in the scene changes, so there are no events.
    """
    return simulate_events(scene, draw_randomness(scene))


def draw_randomness(scene: SimulatedScene) -> Randomness:
    """Draw the background, the pixels and their noise from the scene's seed."""
    rng = np.random.default_rng(scene.seed)
    width, height = scene.size
    camera = scene.camera
    rising, falling = (
        np.clip(rng.normal(mean, camera.threshold_spread, (height, width)), LOWEST_THRESHOLD, None)
        for mean in (camera.threshold, camera.threshold * camera.off_factor)
    )
    start = rng.uniform(-0.5, 0.5, (height, width)) * rising
    texture = draw_texture(rng, scene.wavelengths)
    return Randomness(texture, rising, falling, start, _shot_noise(scene, SceneRenderer(scene, texture), rng))


def simulate_events(scene: SimulatedScene, randomness: Randomness) -> EventStream:
    """Return the events of a scene with given randomness."""
    camera = scene.camera
    renderer = SceneRenderer(scene, randomness.texture)
    before = renderer.log_intensity(0.0)
    memory = before + randomness.start
    columns = []
    for begin in range(0, scene.duration_us, scene.step_us):
        step = min(scene.step_us, scene.duration_us - begin)
        now = renderer.log_intensity((begin + step) / 1e6)
        if camera.leak_hz:
            memory -= camera.leak_hz * step / 1e6 * randomness.rising
        columns.append(_crossings(_Step(before, now, begin, step), memory, randomness.rising, randomness.falling))
        before = now
    events = np.concatenate([*columns, randomness.noise], axis=1)
    events = events[:, np.lexsort((events[2], events[1], events[0]))]
    t, y, x, p = _outside_refractory(events, camera.refractory_us, scene.size[0])
    return EventStream.from_arrays(
        x.astype(np.uint16), y.astype(np.uint16), t, p.astype(np.uint8), sensor_size=scene.size
    )


@dataclass(frozen=True, slots=True)
class _Step:
    """Log intensity ``[H, W]`` at the begin and the end of a time step."""

    before: Array
    after: Array
    start_us: int
    length_us: int


def _crossings(step: _Step, memory: Array, rising: Array, falling: Array) -> Events:
    """Return the events of one step, and move ``memory`` to the crossed thresholds."""
    change = step.after - memory
    y, x = ((change >= rising) | (change <= -falling)).nonzero()
    change = change[y, x]
    up = change > 0
    level = np.where(up, rising[y, x], falling[y, x])
    repeats = np.trunc(abs(change) / level).astype(np.int64)
    height = np.where(up, level, -level)
    owner = np.repeat(np.arange(len(repeats)), repeats)
    ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
    reached = memory[y, x][owner] + ordinal * height[owner]
    low, high = step.before[y, x][owner], step.after[y, x][owner]
    moved = np.where(high == low, 1.0, high - low)
    t = step.start_us + np.clip((reached - low) / moved, 0.0, 1.0) * step.length_us
    memory[y, x] += repeats * height
    return np.stack([t.astype(np.int64), y[owner], x[owner], up[owner].astype(np.int64)])


def _shot_noise(scene: SimulatedScene, renderer: SceneRenderer, rng: np.random.Generator) -> Events:
    """Draw noise events: Poisson in time, of either polarity, more often in the dark."""
    rate, most = scene.camera.shot_noise_hz, scene.camera.dark_noise
    if not rate:
        return np.empty((4, 0), np.int64)
    darkness = np.clip(BACKGROUND / np.maximum(renderer.intensity(0.0), 1e-3), 1 / most, most)
    counts = rng.poisson(rate * darkness * scene.duration_us / 1e6)
    y, x = (np.repeat(axis, counts[counts > 0]) for axis in counts.nonzero())
    return np.stack([rng.integers(0, scene.duration_us, len(y)), y, x, rng.integers(0, 2, len(y))])


def _outside_refractory(events: Events, refractory_us: int, width: int) -> Events:
    """Drop events that follow a retained event of the same pixel within ``refractory_us``; the order stays."""
    if not refractory_us or not events.shape[1]:
        return events
    pixel = events[1] * width + events[2]
    order = np.argsort(pixel, kind="stable")
    t, same = events[0][order], np.diff(pixel[order], prepend=-1) == 0
    # An event that is late enough after its predecessor stays. Only runs of early events need the last retained time,
    # and they are resolved one rank at a time.
    early = same & (np.diff(t, prepend=0) < refractory_us)
    keep = ~early
    index = np.arange(len(t))
    first = np.maximum.accumulate(np.where(early, 0, index))
    candidates = np.flatnonzero(early)
    rank = candidates - first[candidates]
    last = t.copy()  # at the head of each run, the time of its last retained event
    for nth in range(1, int(rank.max(initial=0)) + 1):
        members = candidates[rank == nth]
        retained = members[t[members] - last[first[members]] >= refractory_us]
        keep[retained] = True
        last[first[retained]] = t[retained]
    return events[:, np.sort(order[keep])]
