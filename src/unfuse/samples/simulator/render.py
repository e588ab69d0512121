"""How bright each pixel of a scene is at a time.

The background is a sum of plane waves. A wave of a sum of angles is a sum of products, ``sin(a + b) = sin a cos b +
cos a sin b``, so a whole frame of them is one small matrix product.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from unfuse.samples.simulator.scene import Mover, Scene

_BACKGROUND: Final = 0.35
_EPSILON: Final = 0.02  # keeps the logarithm of a black pixel finite
_WAVES: Final = 6

Array = NDArray[np.float64]


def draw_texture(rng: np.random.Generator) -> Array:
    """Rows (amplitude, kx, ky, phase) of a scene's background; wavelengths of 12 to 60 pixels."""
    wavelength = rng.uniform(12, 60, _WAVES)
    angle = rng.uniform(0, np.pi, _WAVES)
    k = 2 * np.pi / wavelength
    amplitude, phase = rng.uniform(0.02, 0.05, _WAVES), rng.uniform(0, 2 * np.pi, _WAVES)
    return np.stack([amplitude, k * np.cos(angle), k * np.sin(angle), phase], 1)


def intensity(scene: Scene, texture: Array, seconds: float) -> Array:
    """Linear intensity ``[H, W]``, 0 to 1."""
    image = _background(scene, texture, seconds)
    for light in scene.flickers:
        swing = 1 + light.depth * np.sin(2 * np.pi * light.frequency_hz * seconds)
        lamp = Mover(
            shape="disc",
            position=light.position,
            velocity=(0, 0),
            radius=light.radius,
            intensity=light.intensity * swing,
        )
        _put(image, lamp, 0.0)
    for mover in scene.movers:
        _put(image, mover, seconds)
    return image.clip(0.0, 1.0)


def log_intensity(scene: Scene, texture: Array, seconds: float) -> Array:
    """Natural logarithm of it, as a photoreceptor sees."""
    log: Array = np.log(intensity(scene, texture, seconds) + _EPSILON)
    return log


def _background(scene: Scene, texture: Array, seconds: float) -> Array:
    width, height = scene.size
    scale = 1.0 + scene.zoom * seconds
    x = (np.arange(width) - width / 2) / scale + width / 2 - scene.pan[0] * seconds
    y = (np.arange(height) - height / 2) / scale + height / 2 - scene.pan[1] * seconds
    amplitude, kx, ky, phase = texture.T[:, :, None]
    along = kx * x
    down = ky * y + phase
    left = np.concatenate([amplitude * np.cos(down), amplitude * np.sin(down)])
    image: Array = _BACKGROUND + scene.texture * (left.T @ np.concatenate([np.sin(along), np.cos(along)]))
    return image


def _put(image: Array, mover: Mover, seconds: float) -> None:
    """Draws one shape over what is there, within its own bounds."""
    radius = mover.radius * (1 + mover.growth * seconds)
    cx = mover.position[0] + mover.velocity[0] * seconds
    cy = mover.position[1] + mover.velocity[1] * seconds
    height, width = image.shape
    left, right = max(int(cx - radius) - 2, 0), min(int(cx + radius) + 3, width)
    top, bottom = max(int(cy - radius) - 2, 0), min(int(cy + radius) + 3, height)
    if left >= right or top >= bottom:
        return
    dx = np.arange(left, right) - cx
    dy = (np.arange(top, bottom) - cy)[:, None]
    # One pixel of blur at the rim lets an edge pass a pixel gradually, as optics do.
    cover = np.clip(0.5 - _outside(mover.shape, dx, dy, radius), 0.0, 1.0)
    part = image[top:bottom, left:right]
    part += cover * (mover.intensity - part)


def _outside(shape: str, dx: Array, dy: Array, radius: float) -> Array:
    """Distance beyond a shape's rim in pixels, below 0 inside; all shapes fit a square of ``2 radius``."""
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
