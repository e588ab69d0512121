"""One recording in every format that is read."""

from __future__ import annotations

from pathlib import Path

import eventcv
import h5py
import hdf5plugin
import numpy as np

from unfuse.events import EventStream, write_eventgpt_npy

FORMATS = (
    "eventgpt.npy",
    "record.npy",
    "columns.npz",
    "bins.npz",
    "events.h5",
    "evt2.raw",
    "evt3.raw",
    "cd.dat",
    "davis.aedat4",
    "named.csv",
    "seconds.txt",
)


def write_all(folder: Path, stream: EventStream) -> list[Path]:
    """Writes ``stream`` in every format; a sensor of 640 x 480 if the format has a field for it."""
    columns = {name: getattr(stream, name) for name in "xytp"}
    write_eventgpt_npy(folder / "eventgpt.npy", stream)
    record = np.zeros(len(stream), [("x", "<u2"), ("y", "<u2"), ("t", "<i8"), ("p", "u1")])
    for name, column in columns.items():
        record[name] = column
    np.save(folder / "record.npy", record)
    np.savez_compressed(folder / "columns.npz", **columns)
    bins = np.empty(4, object)
    bins[:] = np.array_split(record, 4)
    np.savez(folder / "bins.npz", event_bins=bins)
    with h5py.File(folder / "events.h5", "w") as file:
        for name, dtype in (("x", "u2"), ("y", "u2"), ("t", "u4"), ("p", "u1")):
            values = columns[name].astype(dtype)
            chunk = (min(len(stream), 1 << 16),)
            file.create_dataset(f"events/{name}", data=values, chunks=chunk, **hdf5plugin.Blosc(cname="zstd"))
        file["t_offset"] = np.int64(50_000_000_000)
        starts = np.arange(int(stream.t[-1]) // 1000 + 1) * 1000
        file["ms_to_idx"] = np.searchsorted(stream.t, starts).astype("u8")
    rows = np.stack(list(columns.values()), 1).astype(np.uint64)
    camera = eventcv.from_numpy(rows, sensor_size=(640, 480), time_unit="us")
    for name, wanted in (("evt2.raw", "evt2"), ("evt3.raw", "evt3"), ("cd.dat", None), ("davis.aedat4", None)):
        eventcv.save(camera, str(folder / name), format=wanted)
    order = ["x", "y", "p", "t"]
    table = np.stack([columns[name] for name in order], 1)
    np.savetxt(folder / "named.csv", table, fmt="%d", delimiter=",", header=",".join(order), comments="")
    table = np.stack([stream.t / 1e6, stream.x, stream.y, stream.p], 1)
    np.savetxt(folder / "seconds.txt", table, fmt=("%.6f", "%d", "%d", "%d"))
    return [folder / name for name in FORMATS]
