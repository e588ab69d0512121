"""DSEC ``rectify_map.h5``: the position of each pixel of the event camera in the rectified picture.

``rectify_map[y, x]`` is (x', y') in float (dsec.ifi.uzh.ch/data-format). The map is returned as events: one for
each pixel, row by row, at the nearest whole pixel. That pixel may lie outside of the picture; -1 for a value that is
not finite.
"""

from __future__ import annotations

import h5py
import hdf5plugin  # noqa: F401  # importing registers the Blosc filter
import numpy as np

from unfuse.decoders.batches import Decoded, RefusedError, batch
from unfuse.decoders.dsec import SENSOR_SIZE


def decode(path: str, start: int | None, stop: int | None) -> Decoded:
    """Return the whole map."""
    width, height = SENSOR_SIZE
    with h5py.File(path, "r") as file:
        found = file.get("rectify_map")
        if not isinstance(found, h5py.Dataset) or found.shape != (height, width, 2) or found.dtype.kind != "f":
            raise RefusedError(f"groups {sorted(file)[:8]}", f"rectify_map of ({height}, {width}, 2) floats")
        positions = found[:].astype(np.float64)
    positions[~np.isfinite(positions).all(axis=2)] = -1
    whole = np.rint(positions.clip(-(2**20), 2**20)).reshape(-1, 2)
    pixels = np.arange(len(whole))
    return Decoded(iter([batch(whole[:, 0], whole[:, 1], pixels, np.zeros(len(whole)), None, None)]), SENSOR_SIZE)
