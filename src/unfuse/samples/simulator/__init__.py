"""A small event-camera simulator, for fixtures, the demo and training: rendered scenes through a pixel model.

``scene`` says what is in front of the camera, ``render`` how bright each pixel is at a time, ``pixels`` when it fires;
``driving`` draws street-like scenes from a seed.
"""

from unfuse.samples.simulator.driving import driving_scene
from unfuse.samples.simulator.pixels import Chance, draw_chance, events_of, simulate
from unfuse.samples.simulator.render import Picture
from unfuse.samples.simulator.scene import DAYLIGHT, SHAPES, Camera, Flicker, Mover, Scene

__all__ = [
    "DAYLIGHT",
    "SHAPES",
    "Camera",
    "Chance",
    "Flicker",
    "Mover",
    "Picture",
    "Scene",
    "draw_chance",
    "driving_scene",
    "events_of",
    "simulate",
]
