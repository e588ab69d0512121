"""kill -9 at any moment: reported samples survive, resume continues, earlier bytes stay (promise P5)."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.started import Started
from unfuse.records import Manifest, RunFolder, SampleRecord


def append_for_ever(path: Path) -> None:
    run = RunFolder.resume(path, RunFolder.open(path).manifest)
    number = len(run.done_ids)
    while True:
        run.append(SampleRecord(sample_id=str(number), status="ok", text="x" * (number * 977 % 20_000)))
        sys.stdout.write(f"{number}\n")
        sys.stdout.flush()
        number += 1


def test_no_reported_sample_is_lost(
    tmp_path: Path, make_manifest: Callable[..., Manifest], make_record: Callable[..., SampleRecord]
) -> None:
    path = tmp_path / "run"
    RunFolder.create(path, make_manifest()).close()
    samples = path / "samples.jsonl"
    chance = random.Random(0)
    reported: list[str] = []
    sound = b""
    for _ in range(20):
        child = Started(append_for_ever, path, folder=tmp_path)
        least = chance.randrange(1, 8)
        assert child.wait_until(lambda child=child, n=least: child.out.count("\n") >= n), child.errors
        time.sleep(chance.uniform(0, 0.002))  # anywhere in a write
        child.kill()
        reported += child.out.split()
        found = [record.sample_id for record in RunFolder.open(path).records()]
        assert found[: len(reported)] == reported
        assert len(found) <= len(reported) + 1, "at most one written but unreported"
        reported = found
        assert samples.read_bytes().startswith(sound)
        written = samples.read_bytes()
        sound = written[: written.rfind(b"\n") + 1]
        if chance.random() < 0.5:  # a kill rarely tears a single write; a power cut does
            samples.write_bytes(sound + sound[: chance.randrange(1, 200)])
    assert len(reported) > 20
    assert reported == [str(number) for number in range(len(reported))]
    with RunFolder.resume(path, make_manifest()) as run:
        run.append(make_record("end"))
    assert samples.read_bytes().startswith(sound)
    assert RunFolder.open(path).torn_bytes() == 0
