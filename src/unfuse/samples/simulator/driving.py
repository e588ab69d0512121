"""Scenes of a camera behind a windscreen: the background grows and turns, objects move, a lamp flickers."""

from __future__ import annotations

import numpy as np

from unfuse.samples.simulator.scene import DAYLIGHT, Flicker, Mover, SimulatedScene


def driving_scene(seed: int) -> SimulatedScene:
    """Draw a scene from a seed.

    The camera drives forward and turns a little. One to three objects cross or come nearer, darker or brighter than the
    background; one scene in three has a lamp on alternating current.
    """
    rng = np.random.default_rng([seed, 20260115])
    movers = tuple(_mover(rng) for _ in range(rng.integers(1, 4)))
    lamp = Flicker(position=(rng.uniform(40, 600), rng.uniform(20, 120)), radius=rng.uniform(6, 16), depth=0.4)
    return SimulatedScene(
        movers=movers,
        flickers=(lamp,) if rng.uniform() < 1 / 3 else (),
        pan=(rng.uniform(-60, 60), rng.uniform(-10, 10)),
        zoom=rng.uniform(0.5, 1.2),
        texture=rng.uniform(0.9, 1.4),
        camera=DAYLIGHT,
        seed=seed,
    )


def _mover(rng: np.random.Generator) -> Mover:
    bright = rng.uniform() < 0.5
    return Mover(
        shape=str(rng.choice(["box", "bar"])),
        position=(rng.uniform(60, 580), rng.uniform(230, 360)),
        velocity=(rng.uniform(150, 700) * rng.choice([-1, 1]), rng.uniform(-20, 20)),
        radius=rng.uniform(20, 70),
        intensity=rng.uniform(0.7, 0.95) if bright else rng.uniform(0.03, 0.12),
        growth=rng.uniform(-0.3, 1.0),
    )
