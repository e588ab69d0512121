"""Measure memory and time of a DSEC-layout recording of minutes: written, split into windows, read at random.

Events are simulated: different driving scenes, one after the other and repeated, until there are enough.

    python -m benchmarks.dsec_scale FOLDER                           60 s, 200 million events
    python -m benchmarks.dsec_scale FOLDER --seconds 6 --million 20
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.memory import MemorySampler
from unfuse.events import EventStream, TimeWindow, read_events
from unfuse.events.readers import decoder_client
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.samples.simulator import driving_scene, simulate

_SCENES = 12
_BLOCK_US = 50_000
_CHUNK = 1 << 17
_EVERY_S = 0.1
_T_OFFSET = 50_000_000_000
_COLUMNS = (("x", "u2"), ("y", "u2"), ("t", "u4"), ("p", "u1"))


def write_recording(folder: Path, seconds: float, events: int) -> Path:
    """Write events with Blosc and Zstandard as in DSEC, and camera images at 20 Hz; return the sequence's folder."""
    sequence = folder / "simulated_00_a"
    _write_events(sequence / "events" / "left" / "events.h5", seconds, events)
    _write_images(sequence / "images", seconds)
    return sequence


def _write_events(path: Path, seconds: float, events: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = round(seconds * 1e6 / _BLOCK_US)
    scenes = [simulate(driving_scene(seed)) for seed in range(_SCENES)]
    per_block = events // blocks + 1
    with h5py.File(path, "w") as file:
        compression = hdf5plugin.Blosc(cname="zstd", clevel=1)
        columns = {
            name: file.create_dataset(
                f"events/{name}", (0,), dtype, maxshape=(None,), chunks=(_CHUNK,), **compression
            )
            for name, dtype in _COLUMNS
        }  # fmt: skip
        times, done = [], 0
        for block in range(blocks):
            block_events = _block([scenes[(block + i) % _SCENES] for i in range(_SCENES)], per_block, block * _BLOCK_US)
            for name, dtype in _COLUMNS:
                columns[name].resize(done + per_block, axis=0)
                columns[name][done:] = block_events[name].astype(dtype)
            times.append(np.searchsorted(block_events["t"], block * _BLOCK_US + np.arange(0, _BLOCK_US, 1000)) + done)
            done += per_block
        file["ms_to_idx"] = np.concatenate(times).astype("u8")
        file["t_offset"] = np.int64(_T_OFFSET)


def _write_images(folder: Path, seconds: float) -> None:
    images = folder / "left" / "rectified"
    images.mkdir(parents=True, exist_ok=True)
    times = range(0, round(seconds * 1e6), 50_000)
    shade = np.linspace(0, 255, 1440, dtype=np.uint8)
    for number, _ in enumerate(times):
        image = np.repeat(np.roll(shade, 9 * number)[None, :, None], 1080, 0).repeat(3, 2)
        Image.fromarray(image).save(images / f"{number:06d}.png", compress_level=1)
    (folder / "timestamps.txt").write_text("\n".join(str(_T_OFFSET + stamp) for stamp in times) + "\n")


def _block(scenes: list[EventStream], count: int, start_us: int) -> dict[str, NDArray[Any]]:
    """Return ``count`` events of 50 ms from as many superposed scenes as necessary."""
    parts: list[EventStream] = []
    for number in itertools.count():
        parts.append(scenes[number % len(scenes)])
        if sum(map(len, parts)) >= count:
            break
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in "xytp"}
    total = len(columns["t"])
    subset = np.sort(np.random.default_rng(start_us).choice(total, count, replace=False))
    order = np.argsort(columns["t"], kind="stable")[subset]
    chosen = {name: column[order] for name, column in columns.items()}
    chosen["t"] = np.minimum(chosen["t"], _BLOCK_US - 1) + start_us
    return chosen


def read_windows(path: Path) -> None:
    """Read windows at random times of a recording; print one line of JSON each."""
    rng = np.random.default_rng(0)
    last = int(decoder_client.inspect(path)["span"][1])
    for length in (50_000, 1_000_000):
        for _ in range(20):
            at = int(rng.integers(0, last - length))
            start = time.perf_counter()
            got = read_events(path, window=TimeWindow(start_us=at, stop_us=at + length))
            seconds = time.perf_counter() - start
            digest = hashlib.sha256(got.t.tobytes()).hexdigest()
            line = {"start_us": at, "length_us": length, "events": len(got), "seconds": seconds, "sha256": digest}
            print(json.dumps(line))


def main() -> None:
    """Write, build, read, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--million", type=float, default=200.0)
    parser.add_argument("--only-read", action="store_true", help="FOLDER is a recording: read windows of it")
    arguments = parser.parse_args()
    if arguments.only_read:
        read_windows(arguments.folder)
        return
    start = time.perf_counter()
    sequence = write_recording(arguments.folder, arguments.seconds, round(arguments.million * 1e6))
    path = sequence / "events" / "left" / "events.h5"
    with h5py.File(path) as file:
        times = file["events/t"][:].astype(np.int64)
    print(
        f"recording            {len(times) / 1e6:.1f} million events, {arguments.seconds:g} s, "
        f"{path.stat().st_size / 1e6:.0f} MB, written in {time.perf_counter() - start:.0f} s"
    )
    out = arguments.folder / "built"
    measure_build(sequence, out, len(times))
    wrong = count_wrong_windows(path, out, times) + measure_reads(path, times)
    if wrong:
        raise SystemExit(f"{wrong} windows differ")


def measure_build(sequence: Path, out: Path, events: int) -> None:
    """Build the dataset in a separate process; print time and peak memory."""
    command = [sys.executable, "-m", "unfuse", "dataset", "build", str(sequence), str(out), "--window", "1s"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    with MemorySampler(process.pid, _EVERY_S) as memory:
        if process.wait():
            raise SystemExit("the build failed")
        seconds = time.perf_counter() - start
    print(
        f"build, windows of 1 s {seconds:6.1f} s, {1e9 * seconds / events:.0f} ns an event, {os.cpu_count()} cores, "
        f"peak memory {memory.peak_bytes / 2**30:.2f} GiB in all processes"
    )


def count_wrong_windows(path: Path, out: Path, times: NDArray[np.int64]) -> int:
    """Compare every window with a brute-force slice of the recording."""
    rows = json.loads((out / MANIFEST_NAME).read_text())
    wrong = 0
    with h5py.File(path) as file:
        for row in rows:
            inside = np.flatnonzero((times >= row["window"]["start_us"]) & (times < row["window"]["stop_us"]))
            stream = read_events(out / "event_npy" / row["event_data"])
            first, last = int(inside[0]), int(inside[-1]) + 1
            wrong += any(
                not np.array_equal(getattr(stream, name), file[f"events/{name}"][first:last]) for name in "xytp"
            ) or last - first != len(inside)
    print(f"windows              {len(rows)}, {wrong} differ from a brute-force slice")
    return wrong


def measure_reads(path: Path, times: NDArray[np.int64]) -> int:
    """Read windows in a separate process; print times and peak memory, and return the number of wrong windows."""
    command = [sys.executable, "-m", "benchmarks.dsec_scale", str(path), "--only-read"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    with MemorySampler(process.pid, _EVERY_S) as memory:
        output, _ = process.communicate()
    reads = [json.loads(line) for line in output.splitlines()]
    wrong = 0
    for read in reads:
        first, last = np.searchsorted(times, [read["start_us"], read["start_us"] + read["length_us"]]).tolist()
        expected = hashlib.sha256(times[first:last].tobytes()).hexdigest()
        wrong += read["events"] != last - first or read["sha256"] != expected
    for length in dict.fromkeys(read["length_us"] for read in reads):
        part = [read for read in reads if read["length_us"] == length]
        per_event_ns = 1e9 * sum(read["seconds"] for read in part) / sum(read["events"] for read in part)
        median_ms = 1e3 * median(read["seconds"] for read in part)
        print(f"any {length // 1000:>4} ms          {median_ms:6.1f} ms, {per_event_ns:.0f} ns an event")
    print(f"while reading        peak memory {memory.peak_bytes / 2**30:.2f} GiB in both processes")
    return wrong


if __name__ == "__main__":
    main()
