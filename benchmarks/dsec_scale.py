"""A DSEC-layout recording of minutes: written, cut into windows of one second, read anywhere; memory and time of each.

Events are simulated: different scenes of driving, one after the other and over again, until there are enough.

    python benchmarks/dsec_scale.py FOLDER                           60 s, 200 million events
    python benchmarks/dsec_scale.py FOLDER --seconds 6 --million 20
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unfuse.events import EventStream, TimeWindow, read_events
from unfuse.events.readers import child
from unfuse.samples.simulator import driving_scene, simulate

_SCENES = 12
_BLOCK_US = 50_000
_CHUNK = 1 << 17
_T_OFFSET = 50_000_000_000
_COLUMNS = (("x", "u2"), ("y", "u2"), ("t", "u4"), ("p", "u1"))


def write_recording(folder: Path, seconds: float, events: int) -> Path:
    """The sequence's folder: events with Blosc and Zstandard as DSEC has them, and a camera at 20 Hz."""
    path = folder / "simulated_00_a" / "events" / "left" / "events.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = round(seconds * 1e6 / _BLOCK_US)
    scenes = [simulate(driving_scene(seed)) for seed in range(_SCENES)]
    wanted = events // blocks + 1
    with h5py.File(path, "w") as file:
        packed = hdf5plugin.Blosc(cname="zstd", clevel=1)
        made = {
            name: file.create_dataset(
                f"events/{name}",
                (0,),
                dtype,
                maxshape=(None,),
                chunks=(_CHUNK,),
                **packed,
            )
            for name, dtype in _COLUMNS
        }
        times, done = [], 0
        for block in range(blocks):
            columns = _block([scenes[(block + i) % _SCENES] for i in range(_SCENES)], wanted, block * _BLOCK_US)
            for name, dtype in _COLUMNS:
                made[name].resize(done + wanted, axis=0)
                made[name][done:] = columns[name].astype(dtype)
            times.append(np.searchsorted(columns["t"], block * _BLOCK_US + np.arange(0, _BLOCK_US, 1000)) + done)
            done += wanted
        file["ms_to_idx"] = np.concatenate(times).astype("u8")
        file["t_offset"] = np.int64(_T_OFFSET)
    sequence = folder / "simulated_00_a"
    pictures = sequence / "images" / "left" / "rectified"
    pictures.mkdir(parents=True, exist_ok=True)
    stamps = range(0, round(seconds * 1e6), 50_000)
    shade = np.linspace(0, 255, 1440, dtype=np.uint8)
    for number, _ in enumerate(stamps):
        Image.fromarray(np.repeat(np.roll(shade, 9 * number)[None, :, None], 1080, 0).repeat(3, 2)).save(
            pictures / f"{number:06d}.png", compress_level=1
        )
    (sequence / "images" / "timestamps.txt").write_text("\n".join(str(_T_OFFSET + stamp) for stamp in stamps) + "\n")
    return sequence


def _block(scenes: list[EventStream], wanted: int, start_us: int) -> dict[str, NDArray[Any]]:
    """``wanted`` events of 50 ms: several scenes on top of one another, as many as it takes."""
    parts: list[EventStream] = []
    for number in count():
        parts.append(scenes[number % len(scenes)])
        if sum(map(len, parts)) >= wanted:
            break
    columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in "xytp"}
    total = len(columns["t"])
    kept = np.sort(np.random.default_rng(start_us).choice(total, wanted, replace=False))
    order = np.argsort(columns["t"], kind="stable")[kept]
    chosen = {name: column[order] for name, column in columns.items()}
    chosen["t"] = np.minimum(chosen["t"], _BLOCK_US - 1) + start_us
    return chosen


class Memory:
    """Peak of the resident memory of a process and its children, together, sampled ten times a second."""

    def __init__(self, pid: int):
        self.peak_bytes = 0
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The peak."""
        self._over.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self.peak_bytes = max(self.peak_bytes, sum(map(_private_bytes, _family(self._pid))))


def _family(pid: int) -> list[int]:
    try:
        children = (Path("/proc") / str(pid) / "task" / str(pid) / "children").read_text().split()
    except OSError:
        return []
    return [pid, *(one for child in children for one in _family(int(child)))]


def _private_bytes(pid: int) -> int:
    """Proportional set size: pages that several share are counted once in all."""
    try:
        for line in (Path("/proc") / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def read_windows(path: Path) -> None:
    """Windows anywhere in a recording, a line of JSON each."""
    rng = np.random.default_rng(0)
    last = int(child.look(path)["span"][1])
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
    """Writes, builds, reads, compares, prints."""
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
        events = len(file["events/t"])
    print(
        f"recording            {events / 1e6:.1f} million events, {arguments.seconds:g} s, "
        f"{path.stat().st_size / 1e6:.0f} MB, written in {time.perf_counter() - start:.0f} s"
    )

    out = arguments.folder / "built"
    command = [sys.executable, "-m", "unfuse", "dataset", "build", str(sequence), str(out), "--window", "1s"]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    memory = Memory(process.pid)
    if process.wait():
        raise SystemExit("the build failed")
    built = time.perf_counter() - start
    print(
        f"build, windows of 1 s {built:6.1f} s, {1e9 * built / events:.0f} ns an event, {os.cpu_count()} cores, "
        f"peak memory {memory.stop() / 2**30:.2f} GiB in all processes"
    )

    rows = json.loads((out / "EventGPT_Instruction_Subset.json").read_text())
    wrong = 0
    with h5py.File(path) as file:
        times = file["events/t"][:].astype(np.int64)
        for row in rows:
            inside = np.flatnonzero((times >= row["window"]["start_us"]) & (times < row["window"]["stop_us"]))
            got = read_events(out / "event_npy" / row["event_data"])
            first, last = int(inside[0]), int(inside[-1]) + 1
            wrong += any(
                not np.array_equal(getattr(got, name), file[f"events/{name}"][first:last]) for name in "xytp"
            ) or last - first != len(inside)
    print(f"windows              {len(rows)}, {wrong} differ from a brute-force slice")

    reader = subprocess.Popen([sys.executable, __file__, str(path), "--only-read"], stdout=subprocess.PIPE)
    memory = Memory(reader.pid)
    said, _ = reader.communicate()
    peak = memory.stop() / 2**30
    reads = [json.loads(line) for line in said.splitlines()]
    for read in reads:
        first, last = np.searchsorted(times, [read["start_us"], read["start_us"] + read["length_us"]]).tolist()
        expected = hashlib.sha256(times[first:last].tobytes()).hexdigest()
        wrong += read["events"] != last - first or read["sha256"] != expected
    for length in dict.fromkeys(read["length_us"] for read in reads):
        part = [read for read in reads if read["length_us"] == length]
        each = 1e9 * sum(read["seconds"] for read in part) / sum(read["events"] for read in part)
        middle = 1e3 * median(read["seconds"] for read in part)
        print(f"any {length // 1000:>4} ms          {middle:6.1f} ms, {each:.0f} ns an event")
    print(f"while reading        peak memory {peak:.2f} GiB in both processes")
    if wrong:
        raise SystemExit(f"{wrong} windows differ")


if __name__ == "__main__":
    main()
