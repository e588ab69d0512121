"""Scenes of the demo, drawn from a seed, and the facts about them that events can show.

An answer needs all five frames: a bright shape that moves left and a dark shape that moves right paint equal single
frames. Noise does not tell them apart either, because dark and bright pixels are equally noisy. The background is a
thicket of sharp contours before an even wall. With a smooth background a single frame would show the rotation of the
camera: a pixel that an extremum has passed is silent until its threshold is reached again.

Speeds are those of a close, fast scene, so that 50 ms show them. Movers stay inside the centre crop and do not touch
each other, and none is near a border between places, so that every place is unambiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Final

import numpy as np

from unfuse.samples.simulator import DAYLIGHT, SHAPES, Flicker, Mover, SimulatedScene
from unfuse.samples.simulator.render import BACKGROUND, EPSILON

DIRECTIONS: Final = ("left", "right", "up", "down", "closer", "away")
PLACES: Final = ("left", "middle", "right")
CAMERAS: Final = ("still", "left", "right", "forward")

_SECONDS: Final = 0.05
_WIDTH, _HEIGHT = 640, 480
_LEFT, _RIGHT = 84, 556  # the rest after a centre crop to a square, less a rim
_PLACE_MARGIN: Final = 18
_GAP: Final = 10
_UNIT: Final = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "closer": (0, 0), "away": (0, 0)}
_COUNTS: Final = {"still": (0.06, 0.36, 0.36, 0.22), "moving": (0.3, 0.42, 0.28)}


@dataclass(frozen=True, slots=True)
class MoverFacts:
    """Facts of one mover."""

    shape: str
    direction: str
    place: str
    """Third of the image that holds the mover at half time."""


@dataclass(frozen=True, slots=True)
class SceneFacts:
    """Facts of a scene; the dialogue states them."""

    movers: tuple[MoverFacts, ...]
    """Movers in the order of ``SHAPES``, each shape at most once."""
    fastest: str | None
    """Shape of the fastest of several crossing movers; None without such a comparison."""
    camera: str
    """Motion of the camera, one of ``CAMERAS``."""
    flicker: bool


def demo_scene(seed: int) -> tuple[SimulatedScene, SceneFacts]:
    """Draw a scene and its facts; equal seeds give equal scenes."""
    rng = np.random.default_rng([seed, 20261123])
    camera = str(rng.choice(CAMERAS, p=(0.55, 0.15, 0.15, 0.15)))
    chances = _COUNTS["still" if camera == "still" else "moving"]
    count = int(rng.choice(len(chances), p=chances))
    movers, fastest = _movers(rng, count)
    lamps = _lamps(rng, movers) if camera == "still" and rng.uniform() < 0.25 else ()
    pan = float(rng.uniform(500, 1100) * {"left": 1, "right": -1}.get(camera, 0))
    # The position at half time is drawn, because the first position would reveal the direction.
    thicket = rng.uniform(250, 390) - pan * _SECONDS / 2, rng.uniform(170, 310), rng.uniform(110, 170)
    scene = SimulatedScene(
        movers=tuple(mover for mover, _ in movers),
        flickers=lamps,
        pan=(pan, 0.0),
        zoom=float(rng.uniform(3, 6)) if camera == "forward" else 0.0,
        texture=float(rng.uniform(1.2, 1.8)),
        wavelengths=(60.0, 200.0),
        contours=1000.0,
        thicket=(float(thicket[0]), float(thicket[1]), float(thicket[2])),
        duration_us=round(_SECONDS * 1e6),
        camera=replace(DAYLIGHT, threshold=float(rng.uniform(0.16, 0.26)), dark_noise=1.0),
        seed=seed,
    )
    facts = tuple(sorted((_facts(*mover) for mover in movers), key=lambda fact: SHAPES.index(fact.shape)))
    return scene, SceneFacts(movers=facts, fastest=fastest, camera=camera, flicker=bool(lamps))


def _movers(rng: np.random.Generator, count: int) -> tuple[list[tuple[Mover, str]], str | None]:
    """Draw movers with their directions, and the shape of the fastest."""
    while True:
        shapes = [str(shape) for shape in rng.permutation(SHAPES)[:count]]
        directions = [str(rng.choice(DIRECTIONS)) for _ in shapes]
        crossing = all(direction in DIRECTIONS[:4] for direction in directions)
        slow = rng.uniform(480, 760)
        speeds = [slow * rng.uniform(0.9, 1.1) for _ in shapes]
        fastest = None
        if count > 1 and crossing:
            fastest = int(rng.integers(count))
            speeds[fastest] = slow * rng.uniform(1.9, 2.3)
        # A crowded draw is repeated completely: placing the rest would favour some places and directions.
        for _ in range(20):
            movers = [_mover(rng, *each) for each in zip(shapes, directions, speeds, strict=True)]
            if all(map(_fits, movers)) and not any(_touch(a, b) for a, b in combinations(movers, 2)):
                name = None if fastest is None else shapes[fastest]
                return list(zip(movers, directions, strict=True)), name


def _mover(rng: np.random.Generator, shape: str, direction: str, speed: float) -> Mover:
    growth = {"closer": rng.uniform(8, 13), "away": rng.uniform(-10, -8)}.get(direction, 0.0)
    radius = rng.uniform(*{"closer": (26, 36), "away": (46, 60)}.get(direction, (30, 50)))
    ux, uy = _UNIT[direction]
    return Mover(
        shape=shape,
        position=(rng.uniform(_LEFT, _RIGHT), rng.uniform(0, _HEIGHT)),
        velocity=(ux * speed, uy * speed),
        radius=radius,
        intensity=_intensity(rng),
        growth=growth,
    )


def _intensity(rng: np.random.Generator) -> float:
    """Draw an intensity above or below the background by a common factor."""
    contrast = rng.uniform(0.85, 1.0) * rng.choice([-1, 1])
    return float((BACKGROUND + EPSILON) * np.exp(contrast) - EPSILON)


def _at(mover: Mover, seconds: float) -> tuple[float, float, float]:
    """Return centre and radius at a time."""
    x, y = (p + v * seconds for p, v in zip(mover.position, mover.velocity, strict=True))
    return x, y, mover.radius * (1 + mover.growth * seconds)


def _fits(mover: Mover) -> bool:
    """Return whether a mover stays in view, clear of the borders between places."""
    for seconds in (0.0, _SECONDS):
        x, y, radius = _at(mover, seconds)
        if not (_LEFT + radius < x < _RIGHT - radius and radius < y < _HEIGHT - radius):
            return False
    x = _at(mover, _SECONDS / 2)[0]
    return all(abs(x - border) > _PLACE_MARGIN for border in (_WIDTH / 3, 2 * _WIDTH / 3))


def _touch(a: Mover, b: Mover) -> bool:
    """Return whether the bounding squares of two movers come near each other."""
    for seconds in np.linspace(0.0, _SECONDS, 6):
        (ax, ay, ar), (bx, by, br) = _at(a, seconds), _at(b, seconds)
        if max(abs(ax - bx), abs(ay - by)) < ar + br + _GAP:
            return True
    return False


def _lamps(rng: np.random.Generator, movers: Sequence[tuple[Mover, str]]) -> tuple[Flicker, ...]:
    while True:
        radius = rng.uniform(12, 20)
        position = rng.uniform(_LEFT + radius, _RIGHT - radius), rng.uniform(radius, _HEIGHT - radius)
        stand_in = Mover(shape="disc", position=position, velocity=(0, 0), radius=radius, intensity=0.5)
        if not any(_touch(stand_in, mover) for mover, _ in movers):
            return (Flicker(position=position, radius=radius, frequency_hz=float(rng.choice([100.0, 120.0]))),)


def _facts(mover: Mover, direction: str) -> MoverFacts:
    x = _at(mover, _SECONDS / 2)[0]
    return MoverFacts(shape=mover.shape, direction=direction, place=PLACES[int(3 * x / _WIDTH)])
