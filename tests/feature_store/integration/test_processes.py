"""Several processes on one store, one of them killed again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.feature_store.conftest import scene
from unfuse.feature_store import FeatureStore

STORM = Path(__file__).with_name("storm.py")
BOUND = 12 * 300_000


def test_a_storm_leaves_a_sound_store(tmp_path):
    """No process reads half an entry or fails, the bound holds, and files of killed processes are removed."""
    folder = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, str(STORM), str(folder)], capture_output=True, text=True, timeout=1800, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["killed"], result["failed"], result["faults"]) == (30, 0, []), (result, done.stderr)
    assert result["ledger"] == result["entry_bytes"] <= BOUND
    assert result["entries"] > 3
    for left in (folder / "tmp").iterdir():
        os.utime(left, (time.time() - 3600,) * 2)
    FeatureStore(folder, BOUND).put(scene(1))
    assert not list((folder / "tmp").iterdir())
    for number in range(30):
        assert [fault for _, fault in FeatureStore(tmp_path / f"new-{number}").check()] == [None]


def test_many_threads_share_one_store(tmp_path, make, get):
    from concurrent.futures import ThreadPoolExecutor

    store = FeatureStore(tmp_path)

    def work(seed):
        for number in range(20):
            if (found := get(store, (number + seed) % 20)) is None:
                store.put(make((number + seed) % 20))
            else:
                assert found.tensor.eq((number + seed) % 20).all()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    counts = store.counts
    assert counts.hits + counts.misses == 160
    assert counts.stored == counts.misses >= 20
    assert (counts.damaged, counts.unstored) == (0, 0)
    assert int((tmp_path / "ledger").read_text()) == store.info().entry_bytes
