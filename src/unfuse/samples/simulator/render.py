"""Render the brightness of each pixel of a scene at a time.

The background is a sum of plane waves. Because ``sin(a + b) = sin a cos b + cos a sin b``, a whole frame of the sum is
one small matrix product.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.samples.simulator.scene import Flicker, Mover, SimulatedScene

BACKGROUND: Final = 0.35
EPSILON: Final = 0.02  # keeps the logarithm of a black pixel finite
TONE: Final = 0.3
"""Distance of each background tone from the mean, in natural-log intensity, at texture 1."""
_WAVES: Final = 6

Array = NDArray[np.float64]
_Box = tuple[slice, slice]


def draw_texture(rng: np.random.Generator, wavelengths: tuple[float, float]) -> Array:
    """Draw rows (amplitude, kx, ky, phase) of a scene's background; wavelengths in pixels."""
    k = 2 * np.pi / rng.uniform(*wavelengths, _WAVES)
    angle = rng.uniform(0, np.pi, _WAVES)
    amplitude, phase = rng.uniform(0.02, 0.05, _WAVES), rng.uniform(0, 2 * np.pi, _WAVES)
    return np.stack([amplitude, k * np.cos(angle), k * np.sin(angle), phase], 1)


class SceneRenderer:
    """Renders a scene before its background; a background that does not move is computed once."""

    def __init__(self, scene: SimulatedScene, texture: Array):
        self._scene = scene
        self._texture = texture
        self._still: tuple[Array, Array] | None = None
        if not scene.camera_moves:
            still = self._background(0.0)
            self._still = still, _log(still)

    def intensity(self, seconds: float) -> Array:
        """Return linear intensity ``[H, W]``, 0 to 1."""
        image = self._background(seconds) if self._still is None else self._still[0].copy()
        self._draw(image, seconds)
        return image.clip(0.0, 1.0)

    def log_intensity(self, seconds: float) -> Array:
        """Return the natural logarithm of the intensity ``[H, W]``, as a photoreceptor measures it."""
        if self._still is None:
            return _log(self.intensity(seconds))
        image, log = (array.copy() for array in self._still)
        for box in self._draw(image, seconds):
            log[box] = _log(image[box])
        return log

    def _background(self, seconds: float) -> Array:
        scene = self._scene
        width, height = scene.size
        scale = 1.0 + scene.zoom * seconds
        x = (np.arange(width) - width / 2) / scale + width / 2 - scene.pan[0] * seconds
        y = (np.arange(height) - height / 2) / scale + height / 2 - scene.pan[1] * seconds
        amplitude, kx, ky, phase = self._texture.T[:, :, None]
        along = kx * x
        down = ky * y + phase
        left = np.concatenate([amplitude * np.cos(down), amplitude * np.sin(down)])
        waves: Array = left.T @ np.concatenate([np.sin(along), np.cos(along)])
        if not scene.contours:
            return BACKGROUND + scene.texture * waves
        # Equally far from the mean in log intensity, so that events do not tell one tone from the other.
        tone = TONE * scene.texture * np.tanh(scene.contours * waves)
        if scene.thicket:
            cx, cy, radius = scene.thicket
            tone *= np.clip(0.5 + radius - np.hypot(x - cx, (y - cy)[:, None]), 0.0, 1.0)
        image: Array = (BACKGROUND + EPSILON) * np.exp(tone) - EPSILON
        return image

    def _draw(self, image: Array, seconds: float) -> list[_Box]:
        """Draw every shape over the background; return the box of each."""
        lamps = [_lamp(light, seconds) for light in self._scene.flickers]
        boxes = [_draw_shape(image, lamp, 0.0) for lamp in lamps]
        boxes += [_draw_shape(image, mover, seconds) for mover in self._scene.movers]
        return [box for box in boxes if box is not None]


def _log(intensity: Array) -> Array:
    log: Array = np.log(intensity.clip(0.0, 1.0) + EPSILON)
    return log


def _lamp(light: Flicker, seconds: float) -> Mover:
    swing = 1 + light.depth * np.sin(2 * np.pi * light.frequency_hz * seconds)
    return Mover(
        shape="disc",
        position=light.position,
        velocity=(0, 0),
        radius=light.radius,
        intensity=light.intensity * swing,
    )


def _draw_shape(image: Array, mover: Mover, seconds: float) -> _Box | None:
    """Draw one shape over the image and return its box; None outside the image."""
    radius = mover.radius * (1 + mover.growth * seconds)
    cx = mover.position[0] + mover.velocity[0] * seconds
    cy = mover.position[1] + mover.velocity[1] * seconds
    height, width = image.shape
    left, right = max(int(cx - radius) - 2, 0), min(int(cx + radius) + 3, width)
    top, bottom = max(int(cy - radius) - 2, 0), min(int(cy + radius) + 3, height)
    if left >= right or top >= bottom:
        return None
    dx = np.arange(left, right) - cx
    dy = (np.arange(top, bottom) - cy)[:, None]
    # One pixel of blur at the rim lets an edge pass a pixel gradually, as optics do.
    cover = np.clip(0.5 - _outside(mover.shape, dx, dy, radius), 0.0, 1.0)
    box = slice(top, bottom), slice(left, right)
    image[box] += cover * (mover.intensity - image[box])
    return box


def _outside(shape: str, dx: Array, dy: Array, radius: float) -> Array:
    """Return the distance beyond a shape's rim in pixels, below 0 inside; all shapes fit a square of ``2 radius``."""
    if shape == "disc":
        return np.hypot(dx, dy) - radius
    if shape == "box":
        return np.maximum(abs(dx), abs(dy)) - radius
    if shape == "bar":
        return np.maximum(abs(dx) - radius / 4, abs(dy) - radius)
    if shape == "ring":
        return abs(np.hypot(dx, dy) - 0.75 * radius) - 0.25 * radius
    # A triangle with its tip up: below the two slanted sides and above its base.
    slanted = (2 * abs(dx) - (dy + radius)) / np.sqrt(5)
    beyond: Array = np.maximum(slanted, dy - radius)
    return beyond
