"""When a pixel of an event camera fires.

A pixel remembers a log intensity and fires whenever the present one has moved a contrast threshold away; between two
rendered frames the intensity is taken as linear in time, which gives each event its microsecond (ESIM: Rebecq et al.,
CoRL 2018). Thresholds vary over pixels, and apart for rising and falling contrast; leak events rise without cause; shot
noise fires at random, more often in the dark; a pixel rests for its refractory time (v2e: Hu et al., CVPRW 2021).

Limits: the photoreceptor follows at any speed (v2e's bandwidth in dim light is not modelled), noise events do not move
a pixel's memory, rest drops an event without delaying it, and nothing is read out in rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream
from unfuse.samples.simulator.render import BACKGROUND, Picture, draw_texture
from unfuse.samples.simulator.scene import Scene

LOWEST_THRESHOLD: Final = 0.05
"""Threshold of the most sensitive pixel."""

Array = NDArray[np.float64]
Events = NDArray[np.int64]
"""Rows t, y, x, p."""


@dataclass(frozen=True, slots=True)
class Chance:
    """All that is random about one recording."""

    texture: Array
    """Of the background: rows (amplitude, kx, ky, phase)."""
    rising: Array
    """Threshold of each pixel for rising contrast, ``[H, W]``."""
    falling: Array
    start: Array
    """How far each pixel's memory begins above what it sees."""
    noise: Events
    """Shot noise."""


def simulate(scene: Scene) -> EventStream:
    """Events of a scene, sorted by time, then row, then column; the same seed gives the same events.

    Raises:
        EventStreamError: nothing in it changes, so there are none.
    """
    return events_of(scene, draw_chance(scene))


def draw_chance(scene: Scene) -> Chance:
    """Draws the background, the pixels and their noise from the scene's seed."""
    rng = np.random.default_rng(scene.seed)
    width, height = scene.size
    camera = scene.camera
    rising, falling = (
        np.clip(rng.normal(mean, camera.threshold_spread, (height, width)), LOWEST_THRESHOLD, None)
        for mean in (camera.threshold, camera.threshold * camera.off_factor)
    )
    start = rng.uniform(-0.5, 0.5, (height, width)) * rising
    texture = draw_texture(rng, scene.wavelengths)
    return Chance(texture, rising, falling, start, _shot_noise(scene, Picture(scene, texture), rng))


def events_of(scene: Scene, chance: Chance) -> EventStream:
    """Events of a scene, all chance given."""
    camera, rising = scene.camera, chance.rising
    picture = Picture(scene, chance.texture)
    before = picture.log_intensity(0.0)
    memory = before + chance.start
    columns = []
    for begin in range(0, scene.duration_us, scene.step_us):
        step = min(scene.step_us, scene.duration_us - begin)
        now = picture.log_intensity((begin + step) / 1e6)
        if camera.leak_hz:
            memory -= camera.leak_hz * step / 1e6 * rising
        columns.append(_crossings(before, now, memory, rising, chance.falling, begin, step))
        before = now
    events = np.concatenate([*columns, chance.noise], axis=1)
    events = events[:, np.lexsort((events[2], events[1], events[0]))]
    t, y, x, p = _rested(events, camera.refractory_us, scene.size[0])
    return EventStream.from_arrays(
        x.astype(np.uint16), y.astype(np.uint16), t, p.astype(np.uint8), sensor_size=scene.size
    )


def _crossings(
    before: Array, now: Array, memory: Array, rising: Array, falling: Array, start_us: int, step_us: int
) -> Events:
    """One step's events; moves ``memory`` along."""
    change = now - memory
    y, x = ((change >= rising) | (change <= -falling)).nonzero()
    change = change[y, x]
    up = change > 0
    level = np.where(up, rising[y, x], falling[y, x])
    repeats = np.trunc(abs(change) / level).astype(np.int64)
    height = np.where(up, level, -level)
    owner = np.repeat(np.arange(len(repeats)), repeats)
    ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
    reached = memory[y, x][owner] + ordinal * height[owner]
    low, high = before[y, x][owner], now[y, x][owner]
    moved = np.where(high == low, 1.0, high - low)
    t = start_us + np.clip((reached - low) / moved, 0.0, 1.0) * step_us
    memory[y, x] += repeats * height
    return np.stack([t.astype(np.int64), y[owner], x[owner], up[owner].astype(np.int64)])


def _shot_noise(scene: Scene, picture: Picture, rng: np.random.Generator) -> Events:
    """Events without cause: Poisson in time, either polarity, more often in the dark."""
    rate, most = scene.camera.shot_noise_hz, scene.camera.dark_noise
    if not rate:
        return np.empty((4, 0), np.int64)
    darkness = np.clip(BACKGROUND / np.maximum(picture.intensity(0.0), 1e-3), 1 / most, most)
    counts = rng.poisson(rate * darkness * scene.duration_us / 1e6)
    y, x = (np.repeat(axis, counts[counts > 0]) for axis in counts.nonzero())
    return np.stack([rng.integers(0, scene.duration_us, len(y)), y, x, rng.integers(0, 2, len(y))])


def _rested(events: Events, rest_us: int, width: int) -> Events:
    """Events without those that follow a kept one of the same pixel within ``rest_us``; their order stays."""
    if not rest_us or not events.shape[1]:
        return events
    pixel = events[1] * width + events[2]
    order = np.argsort(pixel, kind="stable")
    t, same = events[0][order], np.diff(pixel[order], prepend=-1) == 0
    # Whoever comes late enough after the one before it stays; only runs of others need a look, one rank at a time.
    early = same & (np.diff(t, prepend=0) < rest_us)
    keep = ~early
    index = np.arange(len(t))
    first = np.maximum.accumulate(np.where(early, 0, index))
    suspects = np.flatnonzero(early)
    rank = suspects - first[suspects]
    last = t.copy()  # at the head of each run, the time of the last one kept
    for nth in range(1, int(rank.max(initial=0)) + 1):
        here = suspects[rank == nth]
        kept = here[t[here] - last[first[here]] >= rest_us]
        keep[kept] = True
        last[first[kept]] = t[kept]
    return events[:, np.sort(order[keep])]
