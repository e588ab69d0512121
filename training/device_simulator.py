"""Simulate events of many scenes at once on a GPU, equal to those of ``unfuse.samples.simulator``, and form frames.

The code follows the numpy simulator step by step. With equal randomness both give equal events; a test checks this.
By default the randomness is drawn on the device, from the seeds of the scenes.

Shape letters: B scenes, M shapes in front, S side of a shape's window, H, W sensor, N events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from unfuse.samples.simulator import SHAPES, Mover, Randomness, SimulatedScene
from unfuse.samples.simulator.pixels import LOWEST_THRESHOLD
from unfuse.samples.simulator.render import BACKGROUND, EPSILON, TONE, draw_texture

_NONE, _OFF, _ON = 0, 1, 2
"""Codes of a pixel of a frame."""

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Scenes of one size, duration and step, as tensors on a device."""

    scenes: tuple[SimulatedScene, ...]
    texture: Tensor
    """``[B, 6, 4]``"""
    rising: Tensor
    """``[B, H, W]``"""
    falling: Tensor
    start: Tensor
    noise: tuple[Tensor, Tensor, Tensor]
    """Shot noise in no order: scene and pixel in one index ``[N]``, time in us, polarity."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """B, H, W."""
        width, height = self.scenes[0].size
        return len(self.scenes), height, width


def batch_with(
    scenes: Sequence[SimulatedScene], randomness: Sequence[Randomness], device: torch.device, dtype: torch.dtype
) -> Batch:
    """Return a batch with randomness drawn by the numpy simulator."""
    width, height = scenes[0].size

    def stacked(name: str) -> Tensor:
        return torch.stack([torch.from_numpy(getattr(each, name)) for each in randomness]).to(device, dtype)

    noise = [
        ((scene * height + y) * width + x, t, p) for scene, (t, y, x, p) in enumerate(each.noise for each in randomness)
    ]
    index, t, p = (
        torch.cat([torch.from_numpy(part) for part in parts]).to(device) for parts in zip(*noise, strict=True)
    )
    return Batch(
        tuple(scenes), stacked("texture"), stacked("rising"), stacked("falling"), stacked("start"), (index, t, p)
    )


def draw_batch(scenes: Sequence[SimulatedScene], device: torch.device, dtype: torch.dtype) -> Batch:
    """Return a batch with randomness drawn on the device; the first scene's seed seeds all."""
    import numpy as np

    width, height = scenes[0].size
    generator = torch.Generator(device).manual_seed(scenes[0].seed)
    shape = len(scenes), height, width

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, device=device, dtype=dtype)[:, None, None]

    def thresholds(factor: Sequence[float]) -> Tensor:
        normal = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        mean = column([scene.camera.threshold * f for scene, f in zip(scenes, factor, strict=True)])
        return (mean + column([scene.camera.threshold_spread for scene in scenes]) * normal).clamp(LOWEST_THRESHOLD)

    rising = thresholds([1.0] * len(scenes))
    falling = thresholds([scene.camera.off_factor for scene in scenes])
    start = (torch.rand(shape, generator=generator, device=device, dtype=dtype) - 0.5) * rising
    textures = [draw_texture(np.random.default_rng(scene.seed), scene.wavelengths) for scene in scenes]
    texture = torch.from_numpy(np.stack(textures)).to(device, dtype)
    rates = column([scene.camera.shot_noise_hz * scene.duration_us / 1e6 for scene in scenes])
    if any(scene.camera.dark_noise != 1 for scene in scenes):
        raise NotImplementedError("noise that differs between dark and bright pixels is drawn by numpy only")
    counts = torch.poisson(rates.expand(shape), generator=generator).long().flatten()
    index = torch.arange(counts.numel(), device=device).repeat_interleave(counts)
    t = torch.randint(scenes[0].duration_us, index.shape, generator=generator, device=device)
    p = torch.randint(2, index.shape, generator=generator, device=device)
    return Batch(tuple(scenes), texture, rising, falling, start, (index, t, p))


def simulate_batch(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return the events of all scenes, sorted by scene, time, row, column.

    Returns:
        Scene and pixel in one index ``(b H + y) W + x``, time in us, polarity; int64 ``[N]`` each.
    """
    first = batch.scenes[0]
    renderer = _BatchRenderer(batch)
    before = renderer.log_intensity(0.0)
    memory = before + batch.start
    leak = torch.tensor([scene.camera.leak_hz for scene in batch.scenes], dtype=before.dtype, device=before.device)
    columns = []
    for begin in range(0, first.duration_us, first.step_us):
        step = min(first.step_us, first.duration_us - begin)
        now = renderer.log_intensity((begin + step) / 1e6)
        memory -= (leak * step / 1e6)[:, None, None] * batch.rising
        columns.append(_crossings(_Step(before, now, begin, step), memory, batch.rising, batch.falling))
        before = now
    index, t, p = (torch.cat(parts) for parts in zip(*columns, batch.noise, strict=True))
    pixels = math.prod(batch.shape[1:])
    # A time may equal the duration: the last crossing of the last step.
    key = (index // pixels * (first.duration_us + 1) + t) * pixels + index % pixels
    order = key.sort(stable=True).indices
    index, t, p = index[order], t[order], p[order]
    keep = _outside_refractory(index, t, first.camera.refractory_us)
    return index[keep], t[keep], p[keep]


def frames_of(index: Tensor, p: Tensor, shape: tuple[int, int, int], num_frames: int = 5) -> Tensor:
    """Return EventGPT's frames on the whole sensor: runs of equal count; each pixel shows its last event.

    Args:
        index: events as ``simulate_batch`` sorts them.
        p: polarity of the events.
        shape: B, H, W.
        num_frames: runs a scene.

    Returns:
        uint8 ``[B, F, H, W]``: 0 no event, 1 falling, 2 rising.
    """
    scenes, height, width = shape
    scene = index // (height * width)
    counts = torch.bincount(scene, minlength=scenes)
    starts = counts.cumsum(0) - counts
    rank = torch.arange(len(index), device=index.device) - starts[scene]
    run = (rank // (counts // num_frames).clamp(1)[scene]).clamp(max=num_frames - 1)
    target = (scene * num_frames + run) * height * width + index % (height * width)
    # The largest rank is the last event, in any order of the device's writes.
    last = torch.full((scenes * num_frames * height * width,), -1, dtype=torch.int64, device=index.device)
    last.scatter_reduce_(0, target, 2 * rank + p, "amax")
    codes = torch.where(last < 0, _NONE, torch.where(last % 2 == 1, _ON, _OFF))
    return codes.to(torch.uint8).view(scenes, num_frames, height, width)


def colours(frames: Tensor) -> Tensor:
    """Convert codes ``[..., H, W]`` to RGB uint8 ``[..., 3, H, W]``: white, blue for falling, red for rising."""
    white, off, on = (frames == code for code in (_NONE, _OFF, _ON))
    return 255 * torch.stack([white | on, white, white | off], dim=-3).to(torch.uint8)


class _BatchRenderer:
    """Renders the intensities of all scenes at a time."""

    def __init__(self, batch: Batch):
        dtype, device = batch.rising.dtype, batch.rising.device
        self._batch = batch
        _, self._height, self._width = batch.shape

        def row(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device)

        scenes = batch.scenes
        self._zoom, self._texture = row([s.zoom for s in scenes]), row([s.texture for s in scenes])
        thickets = [s.thicket or (0.0, 0.0, math.inf) for s in scenes]
        self._thicket = tuple(row([thicket[i] for thicket in thickets]) for i in range(3))
        self._contours = row([s.contours for s in scenes])
        self._pan = row([s.pan[0] for s in scenes]), row([s.pan[1] for s in scenes])
        self._x, self._y = (torch.arange(n, dtype=dtype, device=device) for n in (self._width, self._height))
        fronts = [[(m, 0.0, 0.0) for m in _lamps(s)] + [(m, 0.0, 0.0) for m in s.movers] for s in scenes]
        most = max(map(len, fronts))
        self._fronts = most
        if not most:
            return
        nothing = Mover(shape="disc", position=(-1e4, -1e4), velocity=(0, 0), radius=1.0, intensity=0.0)
        movers = [[m for m, _, _ in f] + [nothing] * (most - len(f)) for f in fronts]
        lights = [[*s.flickers] + [None] * (most - len(s.flickers)) for s in scenes]

        def table(of: Sequence[Sequence[float]]) -> Tensor:
            return torch.tensor(of, dtype=dtype, device=device)

        self._px, self._py = (table([[m.position[i] for m in row_] for row_ in movers]) for i in (0, 1))
        self._vx, self._vy = (table([[m.velocity[i] for m in row_] for row_ in movers]) for i in (0, 1))
        self._radius = table([[m.radius for m in row_] for row_ in movers])
        self._growth = table([[m.growth for m in row_] for row_ in movers])
        self._level = table([[m.intensity for m in row_] for row_ in movers])
        self._depth = table([[light.depth if light else 0.0 for light in row_] for row_ in lights])
        self._hertz = table([[light.frequency_hz if light else 0.0 for light in row_] for row_ in lights])
        self._shape = torch.tensor([[SHAPES.index(m.shape) for m in row_] for row_ in movers], device=device)
        seconds = scenes[0].duration_us / 1e6
        largest = max(m.radius * max(1.0, 1 + m.growth * seconds) for row_ in movers for m in row_)
        self._side = min(2 * math.ceil(largest) + 6, self._height, self._width)
        self._window = torch.arange(self._side, device=device)
        self._rows = torch.arange(len(scenes), device=device)[:, None, None]

    def log_intensity(self, seconds: float) -> Tensor:
        """Return the natural logarithm of the intensity, ``[B, H, W]``."""
        image = self._background(seconds)
        if self._fronts:
            self._draw(image, seconds)
        return (image.clamp_(0.0, 1.0) + EPSILON).log_()

    def _background(self, seconds: float) -> Tensor:
        scale = (1.0 + self._zoom * seconds)[:, None]
        x = (self._x - self._width / 2) / scale + self._width / 2 - self._pan[0][:, None] * seconds
        y = (self._y - self._height / 2) / scale + self._height / 2 - self._pan[1][:, None] * seconds
        amplitude, kx, ky, phase = self._batch.texture[..., None].unbind(-2)  # [B, 6, 1]
        along = kx * x[:, None]
        down = ky * y[:, None] + phase
        left = torch.cat([amplitude * down.cos(), amplitude * down.sin()], 1)
        waves = left.transpose(1, 2) @ torch.cat([along.sin(), along.cos()], 1)
        texture, steep = self._texture[:, None, None], self._contours[:, None, None]
        cx, cy, radius = (column[:, None] for column in self._thicket)
        far = torch.hypot((x - cx)[:, None], (y - cy)[:, :, None])
        inside = (0.5 + radius[:, None] - far).clamp(0.0, 1.0)
        tone = TONE * texture * torch.tanh(steep * waves) * inside
        tones = (BACKGROUND + EPSILON) * torch.exp(tone) - EPSILON
        return torch.where(steep > 0, tones, BACKGROUND + texture * waves)

    def _draw(self, image: Tensor, seconds: float) -> None:
        radius = self._radius * (1 + self._growth * seconds)
        cx, cy = self._px + self._vx * seconds, self._py + self._vy * seconds
        level = self._level * (1 + self._depth * torch.sin(2 * math.pi * self._hertz * seconds))
        left = (cx - radius).trunc().long().sub(2).clamp(0, self._width - self._side)
        top = (cy - radius).trunc().long().sub(2).clamp(0, self._height - self._side)
        columns, rows = (edge[..., None] + self._window for edge in (left, top))  # [B, M, S]
        dx = (columns - cx[..., None])[:, :, None, :]
        dy = (rows - cy[..., None])[:, :, :, None]
        outside = _outside(self._shape[..., None, None], dx, dy, radius[..., None, None])
        cover = (0.5 - outside).clamp(0.0, 1.0)
        for m in range(self._fronts):
            at = self._rows, rows[:, m, :, None], columns[:, m, None, :]
            behind = image[at]
            image[at] = behind + cover[:, m] * (level[:, m, None, None] - behind)


def _lamps(scene: SimulatedScene) -> list[Mover]:
    """Return lamps as shapes without motion; their swing is added in time."""
    return [
        Mover(shape="disc", position=light.position, velocity=(0, 0), radius=light.radius, intensity=light.intensity)
        for light in scene.flickers
    ]


def _outside(shape: Tensor, dx: Tensor, dy: Tensor, radius: Tensor) -> Tensor:
    far = torch.hypot(dx, dy)
    across, along = dx.abs(), dy.abs()
    each = {
        "disc": far - radius,
        "box": torch.maximum(across, along) - radius,
        "bar": torch.maximum(across - radius / 4, along - radius),
        "ring": (far - 0.75 * radius).abs() - 0.25 * radius,
        "triangle": torch.maximum((2 * across - (dy + radius)) / math.sqrt(5), dy - radius),
    }
    found = each[SHAPES[0]]
    for number, name in enumerate(SHAPES[1:], start=1):
        found = torch.where(shape == number, each[name], found)
    return found


@dataclass(frozen=True, slots=True)
class _Step:
    """Log intensity ``[B, H, W]`` at the begin and the end of a time step."""

    before: Tensor
    after: Tensor
    start_us: int
    length_us: int


def _crossings(step: _Step, memory: Tensor, rising: Tensor, falling: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the events of one step, and move ``memory`` to the crossed thresholds."""
    change = step.after - memory
    pixel = ((change >= rising) | (change <= -falling)).flatten().nonzero().squeeze(1)
    change = change.flatten()[pixel]
    up = change > 0
    level = torch.where(up, rising.flatten()[pixel], falling.flatten()[pixel])
    repeats = (change.abs() / level).trunc().long()
    height = torch.where(up, level, -level)
    owner = torch.repeat_interleave(repeats)
    ordinal = torch.arange(len(owner), device=owner.device) - (repeats.cumsum(0) - repeats)[owner] + 1
    remembered = memory.flatten()[pixel]
    reached = remembered[owner] + ordinal * height[owner]
    low, high = step.before.flatten()[pixel][owner], step.after.flatten()[pixel][owner]
    moved = torch.where(high == low, torch.ones_like(low), high - low)
    t = step.start_us + ((reached - low) / moved).clamp(0.0, 1.0) * step.length_us
    memory.view(-1)[pixel] = remembered + repeats * height
    return pixel[owner], t.long(), up[owner].long()


def _outside_refractory(index: Tensor, t: Tensor, refractory_us: int) -> Tensor:
    """Return which events stay; they come in the order of time within each pixel."""
    if not refractory_us or not len(index):
        return torch.ones_like(index, dtype=torch.bool)
    grouped = index.sort(stable=True)
    order, pixel = grouped.indices, grouped.values
    t = t[order]
    early = torch.zeros_like(pixel, dtype=torch.bool)
    early[1:] = (pixel[1:] == pixel[:-1]) & (t[1:] - t[:-1] < refractory_us)
    keep = ~early
    position = torch.arange(len(t), device=t.device)
    first = torch.where(early, 0, position).cummax(0).values
    candidates = early.nonzero().squeeze(1)
    rank = candidates - first[candidates]
    last = t.clone()
    for nth in range(1, int(rank.max()) + 1 if len(rank) else 1):
        members = candidates[rank == nth]
        retained = members[t[members] - last[first[members]] >= refractory_us]
        keep[retained] = True
        last[first[retained]] = t[retained]
    return torch.empty_like(keep).index_copy_(0, order, keep)
