"""When a pixel of an event camera fires.

A pixel remembers a log intensity and fires whenever the present one has moved a contrast threshold away; between two
rendered frames the intensity is taken as linear in time, which gives each event its microsecond (ESIM: Rebecq et al.,
CoRL 2018). Thresholds vary over pixels, and apart for rising and falling contrast; leak events rise without cause; shot
noise fires at random, more often in the dark; a pixel rests for its refractory time (v2e: Hu et al., CVPRW 2021).

Limits: the photoreceptor follows at any speed (v2e's bandwidth in dim light is not modelled), noise events do not move
a pixel's memory, rest drops an event without delaying it, and nothing is read out in rows.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream
from unfuse.samples.simulator.render import draw_texture, intensity, log_intensity
from unfuse.samples.simulator.scene import Scene

_LOWEST: Final = 0.05
"""Threshold of the most sensitive pixel."""
_MID_GREY: Final = 0.35

Array = NDArray[np.float64]
Events = NDArray[np.int64]
"""Rows t, y, x, p."""


def simulate(scene: Scene) -> EventStream:
    """Events of a scene, sorted by time, then row, then column; the same seed gives the same events.

    Raises:
        EventStreamError: nothing in it changes, so there are none.
    """
    rng = np.random.default_rng(scene.seed)
    width, height = scene.size
    camera = scene.camera
    rising, falling = (
        np.clip(rng.normal(mean, camera.threshold_spread, (height, width)), _LOWEST, None)
        for mean in (camera.threshold, camera.threshold * camera.off_factor)
    )
    texture = draw_texture(rng)
    before = log_intensity(scene, texture, 0.0)
    memory = before + rng.uniform(-0.5, 0.5, before.shape) * rising
    columns = [np.empty((4, 0), np.int64)]
    for start in range(0, scene.duration_us, scene.step_us):
        step = min(scene.step_us, scene.duration_us - start)
        now = log_intensity(scene, texture, (start + step) / 1e6)
        memory -= camera.leak_hz * step / 1e6 * rising
        columns.append(_crossings(before, now, memory, rising, falling, start, step))
        before = now
    columns.append(_shot_noise(scene, texture, rng))
    events = np.concatenate(columns, axis=1)
    events = events[:, np.lexsort((events[2], events[1], events[0]))]
    t, y, x, p = _rested(events, camera.refractory_us, width)
    return EventStream.from_arrays(
        x.astype(np.uint16), y.astype(np.uint16), t, p.astype(np.uint8), sensor_size=scene.size
    )


def _crossings(
    before: Array, now: Array, memory: Array, rising: Array, falling: Array, start_us: int, step_us: int
) -> Events:
    """One step's events; moves ``memory`` along."""
    change = now - memory
    counts = np.trunc(change / np.where(change > 0, rising, falling)).astype(np.int64)
    y, x = counts.nonzero()
    fired = counts[y, x]
    sign = np.sign(fired)
    height = sign * np.where(sign > 0, rising[y, x], falling[y, x])
    repeats = np.abs(fired)
    owner = np.repeat(np.arange(len(fired)), repeats)
    ordinal = np.arange(len(owner)) - np.repeat(np.cumsum(repeats) - repeats, repeats) + 1
    level = memory[y, x][owner] + ordinal * height[owner]
    low, high = before[y, x][owner], now[y, x][owner]
    moved = np.where(high == low, 1.0, high - low)
    t = start_us + np.clip((level - low) / moved, 0.0, 1.0) * step_us
    memory[y, x] += repeats * height
    return np.stack([t.astype(np.int64), y[owner], x[owner], (sign[owner] > 0).astype(np.int64)])


def _shot_noise(scene: Scene, texture: Array, rng: np.random.Generator) -> Events:
    """Events without cause: Poisson in time, either polarity, up to four times as many in the dark."""
    rate = scene.camera.shot_noise_hz
    if not rate:
        return np.empty((4, 0), np.int64)
    darkness = np.clip(_MID_GREY / np.maximum(intensity(scene, texture, 0.0), 1e-3), 0.25, 4.0)
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
    keep = np.ones(len(t), bool)
    # Pixel by pixel an event is judged by the last one kept before it: all pixels' n-th events at once.
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(t))))
    rank = np.arange(len(t)) - first
    last = np.full(len(t), -(1 << 62), np.int64)
    for nth in range(int(rank.max()) + 1):
        here = np.flatnonzero(rank == nth)
        keep[here] = t[here] - last[first[here]] >= rest_us
        kept = here[keep[here]]
        last[first[kept]] = t[kept]
    return events[:, np.sort(order[keep])]
