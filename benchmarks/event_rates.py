"""Compare simulated recordings with real recordings: the table of docs/demo.md.

python benchmarks/event_rates.py RECORDING.npy ...
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from unfuse.events import EventStream, read_events
from unfuse.samples.demo.scenes import demo_scene
from unfuse.samples.simulator import driving_scene, simulate

PIXELS = 640 * 480
COLUMNS = ("events a us", "rising %", "pixels that fire %", "shortest interval us")


def numbers(stream: EventStream) -> NDArray[np.float64]:
    """Return one value per column."""
    pixel = stream.y.astype(np.int64) * 640 + stream.x
    order = np.lexsort((stream.t, pixel))
    intervals = np.diff(stream.t[order])[np.diff(pixel[order]) == 0]
    fired = 100 * len(np.unique(pixel)) / PIXELS
    return np.array([len(stream) / stream.duration_us, 100 * stream.p.mean(), fired, intervals.min()])


def main(recordings: list[str]) -> None:
    """Print lowest, median and highest of each set."""
    demo = [demo_scene(seed) for seed in range(40)]
    sets = {
        "real": [read_events(path) for path in recordings],
        "driving": [simulate(driving_scene(seed)) for seed in range(12)],
        "demo, camera moves": [simulate(scene) for scene, facts in demo if facts.camera != "still"],
        "demo, camera still": [simulate(scene) for scene, facts in demo if facts.camera == "still"],
    }
    for name, streams in sets.items():
        table = np.stack([numbers(stream) for stream in streams])
        cells = [
            f"{c}: {v.min():.1f} .. {np.median(v):.1f} .. {v.max():.1f}" for c, v in zip(COLUMNS, table.T, strict=True)
        ]
        print(f"{len(streams)} {name}; {'; '.join(cells)}")


if __name__ == "__main__":
    main(sys.argv[1:])
