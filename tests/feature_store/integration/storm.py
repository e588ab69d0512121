"""``python storm.py FOLDER``: processes that put, read, damage nothing and are killed, on one store.

A program of its own, so that it may fork without threads of a test runner beside it. Prints what it did as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path

import torch

from unfuse.feature_store import FeatureStore, ledger
from unfuse.features import Features
from unfuse.stages import Provenance

MODEL = "a" * 64
SCENES = 24
ROWS = 4000  # 256 kB: a kill finds it half written
BOUND = 12 * 300_000
STEADY, KILLS, OPENINGS = 3, 30, 30


def scene(number):
    origin = Provenance(
        model_fingerprint=MODEL,
        family="eventgpt",
        media_sha256=f"{number:064x}",
        num_frames=5,
        dtype="float32",
        shape=(ROWS, 16),
    )
    return Features(torch.full((ROWS, 16), float(number)), origin)


def work(folder, seed, until):
    """Puts and reads at random; every entry found must be whole and belong to its key."""
    rng, store = random.Random(seed), FeatureStore(folder, BOUND)
    while until(store.counts):
        number = rng.randrange(SCENES)
        found = store.get(MODEL, f"{number:064x}", "float32")
        if found is None or rng.random() < 0.1:
            store.put(scene(number))
        if found is not None:
            assert found.tensor.eq(number).all(), number
    assert store.counts.damaged == 0, store.counts
    assert store.counts.unstored == 0, (store.counts, store.trouble)
    return store.counts


def forked(body):
    """A child that runs ``body``; its exit code says whether that raised."""
    if pid := os.fork():
        return pid
    try:
        body()
    except BaseException:  # noqa: BLE001  # it says what it was, and the exit code fails the test
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def steady(folder, seed, stop):
    """Goes on until all are killed, and until it has done enough itself."""

    def body():
        work(folder, seed, lambda counts: not stop.exists() or counts.hits <= 10 or counts.stored <= 10)

    return forked(body)


def main(folder):
    ledger._WAIT_S = 1000.0  # on a busy machine, a lock may be another's for long
    torch.set_num_threads(1)  # a forked child waits for ever for the threads that its parent had
    assert scene(0).digest, "compiles what the children share"
    rng, stop = random.Random(0), folder.with_name(f"{folder.name}.stop")
    workers = [steady(folder, seed, stop) for seed in range(STEADY)]
    killed = 0
    for seed in range(KILLS):
        victim = forked(lambda seed=seed: work(folder, 1000 + seed, lambda _: True))
        time.sleep(rng.uniform(0.002, 0.1))
        os.kill(victim, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(victim, 0)[1]) == -signal.SIGKILL
    stop.touch()
    failed = sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in workers)

    def open_all():
        for number in range(OPENINGS):
            FeatureStore(folder.with_name(f"new-{number}"), BOUND).put(scene(1))

    openers = [forked(open_all) for _ in range(STEADY)]
    failed += sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != 0 for pid in openers)

    left = len(list((folder / "tmp").iterdir()))
    store = FeatureStore(folder, BOUND)
    faults = [fault for _, fault in store.check() if fault]
    store.put(scene(0))
    info = store.info()
    result = {"killed": killed, "failed": failed, "faults": faults, "left": left, "entries": info.entries}
    result |= {"entry_bytes": info.entry_bytes, "ledger": int((folder / "ledger").read_text())}
    sys.stdout.write(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
