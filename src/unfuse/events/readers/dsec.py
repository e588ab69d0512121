"""DSEC ``events.h5``: windows of a recording, without loading the recording.

``events/{x, y, p, t}`` with t in microseconds from the recording's start; ``ms_to_idx[m]`` is the first event at or
after millisecond m; ``t_offset`` places that start on the image clock and is not added here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from unfuse.errors import EventFileError, EventStreamError, MissingPackageError
from unfuse.events.stream import EventStream, TimeWindow

MAGIC: Final = b"\x89HDF\r\n\x1a\n"
SENSOR_SIZE: Final = (640, 480)
_COLUMNS: Final = ("x", "y", "t", "p")
_CHUNK: Final = 1 << 16


def read_dsec(path: Path, window: TimeWindow | None = None) -> EventStream:
    """Reads one window, exact to the microsecond and half-open; the whole recording without one.

    Raises:
        MissingPackageError: h5py or the Blosc filter is not installed.
        EventFileError: damaged, or not DSEC's layout.
        EventStreamError: no events in the window, or an invalid stream.
    """
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            events = file.get("events")
            if events is None or any(name not in events for name in _COLUMNS):
                raise EventFileError(str(path), found=f"groups {sorted(file)}", expected="events/{x, y, t, p}")
            length = len(events["t"])
            start, stop = 0, length
            if window is not None:
                index = file.get("ms_to_idx")
                start = _first_at(events["t"], index, window.start_us, length)
                stop = _first_at(events["t"], index, window.stop_us, length)
                if start >= stop:
                    raise EventStreamError(
                        f"{path}, window [{window.start_us}, {window.stop_us}) us",
                        found="no events",
                        expected=f"a stretch of the recording's {_span(events['t'], length)}",
                    )
            columns = {name: events[name][start:stop] for name in _COLUMNS}
    except (OSError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _explained(path, error) from None
    return EventStream.from_arrays(**columns, sensor_size=SENSOR_SIZE, source=str(path))


def _first_at(times: Any, index: Any, target_us: int, length: int) -> int:
    """Index of the first event at or after ``target_us``."""
    low, high = 0, length
    millisecond = target_us // 1000
    if index is not None:
        if millisecond >= len(index):
            # Past the last millisecond of the index there may still be events.
            low = min(int(index[len(index) - 1]), length) if len(index) else 0
        else:
            low = min(int(index[millisecond]), length)
            high = min(int(index[millisecond + 1]), length) if millisecond + 1 < len(index) else length
    while high - low > _CHUNK:
        middle = (low + high) // 2
        if int(times[middle]) < target_us:
            low = middle + 1
        else:
            high = middle
    part = times[low:high].astype(np.int64)
    return low + int(np.searchsorted(part, target_us, side="left"))


def _span(times: Any, length: int) -> str:
    return f"{int(times[0])} to {int(times[length - 1])} us" if length else "nothing: it is empty"


def _explained(path: Path, error: Exception) -> EventFileError | MissingPackageError:
    text = " ".join(str(error).split())
    if "filter" in text.lower() or "plugin" in text.lower():
        return MissingPackageError(
            str(path),
            found="Blosc compression that this HDF5 cannot read",
            expected="the hdf5plugin package",
            fix='pip install "unfuse[dsec]"',
        )
    return EventFileError(str(path), found=f"an unreadable HDF5 file ({text[:160]})", expected="DSEC's events.h5")


def _h5py() -> Any:
    try:
        import h5py
        import hdf5plugin  # noqa: F401  # importing registers the Blosc filter
    except ImportError as error:
        raise MissingPackageError(
            "DSEC events",
            found=f"no package {error.name}",
            expected="h5py and hdf5plugin",
            fix='pip install "unfuse[dsec]"',
        ) from None
    return h5py
