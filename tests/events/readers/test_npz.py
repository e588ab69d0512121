"""npz files that are bombs or lie about themselves."""

from __future__ import annotations

import numpy as np
import pytest

from unfuse.errors import EventFileError, UnfuseError
from unfuse.events import read_events


def test_npz_bombs_and_liars(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, x=np.zeros(50_000_000, np.uint8))
    with pytest.raises(EventFileError, match="bytes that claim"):
        read_events(path)
    np.savez(path, x=np.zeros(3), y=np.zeros(3), t=np.zeros(3), p=np.zeros(3))
    with pytest.raises(UnfuseError, match="dtype"):
        read_events(path)
    np.savez(path, **{f"a{i}": np.zeros(1, int) for i in range(80)})
    with pytest.raises(EventFileError, match="80 members"):
        read_events(path)
    np.savez(path, x=np.zeros(3, int), y=np.zeros(3, int))
    with pytest.raises(EventFileError, match="also t, p"):
        read_events(path)
