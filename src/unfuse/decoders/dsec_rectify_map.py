"""DSEC ``rectify_map.h5``: where each pixel of the event camera lies in the rectified picture.

``rectify_map[y, x]`` is (x', y') in float (dsec.ifi.uzh.ch/data-format). It is given as events are: one a pixel in the
order of rows, at the nearest whole pixel, which may lie outside; -1 where the map says nothing.
"""

from __future__ import annotations

import h5py
import hdf5plugin  # noqa: F401  # importing registers the Blosc filter
import numpy as np

from unfuse.decoders.batches import Decoded, RefusedError, batch
from unfuse.decoders.dsec import SENSOR_SIZE


def decode(path: str, start: int | None, stop: int | None) -> Decoded:
    """The whole map."""
    width, height = SENSOR_SIZE
    with h5py.File(path, "r") as file:
        found = file.get("rectify_map")
        if not isinstance(found, h5py.Dataset) or found.shape != (height, width, 2) or found.dtype.kind != "f":
            raise RefusedError(f"groups {sorted(file)[:8]}", f"rectify_map of ({height}, {width}, 2) floats")
        places = found[:].astype(np.float64)
    places[~np.isfinite(places).all(axis=2)] = -1
    whole = np.rint(places.clip(-(2**20), 2**20)).reshape(-1, 2)
    pixels = np.arange(len(whole))
    return Decoded(iter([batch(whole[:, 0], whole[:, 1], pixels, np.zeros(len(whole)), None, None)]), SENSOR_SIZE)
