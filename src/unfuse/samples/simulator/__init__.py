"""A small event-camera simulator for fixtures, the demo and training: rendered scenes through a pixel model.

``scene`` describes the objects before the camera, ``render`` computes the brightness of each pixel at a time,
``pixels`` computes when each pixel fires, ``driving`` draws street-like scenes from a seed.
"""

from unfuse.samples.simulator.driving import driving_scene
from unfuse.samples.simulator.pixels import Randomness, draw_randomness, simulate, simulate_events
from unfuse.samples.simulator.render import SceneRenderer
from unfuse.samples.simulator.scene import DAYLIGHT, SHAPES, Flicker, Mover, SimulatedCamera, SimulatedScene

__all__ = [
    "DAYLIGHT",
    "SHAPES",
    "Flicker",
    "Mover",
    "Randomness",
    "SceneRenderer",
    "SimulatedCamera",
    "SimulatedScene",
    "draw_randomness",
    "driving_scene",
    "simulate",
    "simulate_events",
]
