"""What is in front of a simulated event camera, and the camera itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from unfuse.errors import InputError

SHAPES: Final = ("disc", "box", "triangle", "bar", "ring")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mover:
    """One shape that moves on a straight line and may grow, as what comes nearer does."""

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
    """Of the radius, as a share of it per second."""

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise InputError("shape", found=repr(self.shape), expected=", ".join(SHAPES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Flicker:
    """A lamp on alternating current: a disc whose brightness swings as a sine."""

    position: tuple[float, float]
    radius: float
    frequency_hz: float = 100.0
    """Twice the mains frequency."""
    depth: float = 0.5
    """Swing around ``intensity``, as a share of it."""
    intensity: float = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Camera:
    """The pixels' own behaviour; by default without noise, as fixtures want them. See ``DAYLIGHT``."""

    threshold: float = 0.2
    """Contrast threshold in natural-log intensity."""
    threshold_spread: float = 0.03
    """Standard deviation of the threshold over pixels, drawn for rising and falling contrast apart."""
    off_factor: float = 1.0
    """Thresholds of falling contrast as a multiple of those of rising; above 1 there are more rising events."""
    shot_noise_hz: float = 0.0
    """Rate of noise events of a mid-grey pixel."""
    dark_noise: float = 4.0
    """Most noise of a dark pixel, as a multiple of that; a bright one has at least as little. 1 is even noise."""
    leak_hz: float = 0.0
    """Rate of rising events of a pixel that sees nothing change."""
    refractory_us: int = 0
    """Time after an event in which a pixel gives no other."""


DAYLIGHT: Final = Camera(off_factor=1.25, shot_noise_hz=1.0, leak_hz=0.1, refractory_us=100)
"""A camera whose event rate, share of rising events and shortest interval are those of real recordings by day."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What is to be simulated."""

    movers: tuple[Mover, ...] = ()
    """Later ones in front of earlier ones."""
    flickers: tuple[Flicker, ...] = ()
    pan: tuple[float, float] = (0.0, 0.0)
    """Apparent motion of the background from the camera's own turning, pixels per second."""
    zoom: float = 0.0
    """Apparent growth of the background per second: above 0 the camera drives forward."""
    texture: float = 1.0
    """Contrast of the background; 0 is an even wall."""
    wavelengths: tuple[float, float] = (12.0, 60.0)
    """Shortest and longest of its waves, in pixels."""
    contours: float = 0.0
    """How steeply the background changes between two tones where the sum of its waves is 0; 0 is the waves as they
    are."""
    thicket: tuple[float, float, float] | None = None
    """Disc in which the two tones are: its centre (x, y) and radius at time 0, in pixels; None is everywhere."""
    size: tuple[int, int] = (640, 480)
    """Sensor (width, height)."""
    duration_us: int = 50_000
    step_us: int = 1_000
    """Time between rendered frames."""
    camera: Camera = field(default_factory=Camera)
    seed: int = 0

    @property
    def camera_moves(self) -> bool:
        """Whether the background moves in the picture."""
        return self.zoom != 0 or self.pan != (0.0, 0.0)
