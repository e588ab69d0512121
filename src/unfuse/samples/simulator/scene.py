"""A simulated event camera and the objects before it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from unfuse.errors import InputError

SHAPES: Final = ("disc", "box", "triangle", "bar", "ring")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mover:
    """A shape that moves on a straight line and may grow, as an approaching object does."""

    shape: str
    """One of ``SHAPES``."""
    position: tuple[float, float]
    """Centre (x, y) at time 0, in pixels."""
    velocity: tuple[float, float]
    """Pixels per second."""
    radius: float
    """Half the width at time 0, in pixels."""
    intensity: float
    """Linear, 0 to 1; the background is about 0.35."""
    growth: float = 0.0
    """Growth of the radius per second, as a share of it."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError("shape", found=repr(self.shape), expected=", ".join(SHAPES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Flicker:
    """A lamp on alternating current: a disc with a brightness that follows a sine."""

    position: tuple[float, float]
    radius: float
    frequency_hz: float = 100.0
    """Twice the mains frequency."""
    depth: float = 0.5
    """Swing around ``intensity``, as a share of it."""
    intensity: float = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedCamera:
    """Behaviour of the pixels; by default without noise. See ``DAYLIGHT``."""

    threshold: float = 0.2
    """Contrast threshold in natural-log intensity."""
    threshold_spread: float = 0.03
    """Standard deviation of the threshold over pixels, drawn separately for rising and falling contrast."""
    off_factor: float = 1.0
    """Ratio of falling to rising thresholds; above 1 there are more rising events."""
    shot_noise_hz: float = 0.0
    """Rate of noise events of a mid-grey pixel."""
    dark_noise: float = 4.0
    """Most noise of a dark pixel and, inverted, least noise of a bright pixel, in ``shot_noise_hz``; 1: even noise."""
    leak_hz: float = 0.0
    """Rate of rising events of a pixel of constant brightness."""
    refractory_us: int = 0
    """Time after an event in which a pixel is silent."""


DAYLIGHT: Final = SimulatedCamera(off_factor=1.25, shot_noise_hz=1.0, leak_hz=0.1, refractory_us=100)
"""A camera with the event rate, share of rising events and shortest interval of real recordings by day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SimulatedScene:
    """A scene to simulate."""

    movers: tuple[Mover, ...] = ()
    """A later mover covers an earlier one."""
    flickers: tuple[Flicker, ...] = ()
    pan: tuple[float, float] = (0.0, 0.0)
    """Apparent motion of the background from the camera's rotation, pixels per second."""
    zoom: float = 0.0
    """Apparent growth of the background per second: above 0 the camera drives forward."""
    texture: float = 1.0
    """Contrast of the background; 0 is an even wall."""
    wavelengths: tuple[float, float] = (12.0, 60.0)
    """Shortest and longest wave of the background, in pixels."""
    contours: float = 0.0
    """Steepness of the change between two background tones at a sum of the waves of 0; 0 keeps the waves."""
    thicket: tuple[float, float, float] | None = None
    """Disc that holds the two tones: centre (x, y) and radius at time 0, in pixels; None is everywhere."""
    size: tuple[int, int] = (640, 480)
    """Sensor (width, height)."""
    duration_us: int = 50_000
    step_us: int = 1_000
    """Time between rendered frames."""
    camera: SimulatedCamera = field(default_factory=SimulatedCamera)
    seed: int = 0

    @property
    def camera_moves(self) -> bool:
        """True if the background moves in the image."""
        return self.zoom != 0 or self.pan != (0.0, 0.0)
