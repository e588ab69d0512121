"""Runs from folders: single, whole comparisons, interrupted ones, and two of one model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unfuse.errors import RunFolderError
from unfuse.records import ComparisonFolder, Manifest, RunFolder, SampleRecord
from unfuse.report.reading import read_runs, run_of, with_unique_names

MakeRun = Callable[..., list[SampleRecord]]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def write(path: Path, manifest: Manifest, records: list[SampleRecord]) -> Path:
    with RunFolder.create(path, manifest) as folder:
        for record in records:
            folder.append(record)
    return path


def test_a_comparison_stands_for_its_parts(tmp_path: Path, manifest: Manifest, make_run: MakeRun) -> None:
    parts = [("demo", "decoupled"), ("other", "decoupled"), ("third", "fused"), ("fourth", "fused")]
    folder = ComparisonFolder.create(tmp_path / "all", parts, common={}, created="2026-01-01", command=("unfuse",))
    write(folder.run_folder(0), manifest, make_run())
    folder.note(0, "ended")
    folder.note(1, "failed", "no such model")
    folder.note(2, "failed", "cannot be split", refused=True)
    runs = read_runs([folder.path])
    assert [(run.part.model, run.part.error, run.part.refused) for run in runs] == [
        ("demo", None, False),
        ("other", "no such model", False),
        ("third", "cannot be split", True),
        ("fourth", "not run yet", False),
    ]
    assert len(runs[0].part.measured) == 6


def test_a_part_is_no_path(tmp_path: Path, manifest: Manifest, make_run: MakeRun) -> None:
    """A comparison from a stranger must not read elsewhere."""
    folder = ComparisonFolder.create(tmp_path / "all", [("demo", "decoupled")], common={}, created="", command=())
    write(tmp_path / "elsewhere", manifest, make_run())
    path = folder.path / "comparison.json"
    value = json.loads(path.read_text())
    value["parts"][0] |= {"folder": "../elsewhere", "status": "ended"}
    path.write_text(json.dumps(value))
    with pytest.raises(RunFolderError, match="elsewhere"):
        read_runs([folder.path])


def test_equal_runs_get_unique_names(tmp_path: Path, manifest: Manifest, make_run: MakeRun) -> None:
    paths = [write(tmp_path / name, manifest, make_run()) for name in ("before", "after")]
    assert [run.part.model for run in read_runs(paths)] == ["demo [before]", "demo [after]"]
    in_memory = [run_of(manifest, make_run(), None) for _ in range(2)]
    assert [run.part.model for run in with_unique_names(in_memory)] == ["demo [run 1]", "demo [run 2]"]
    twins = [write(tmp_path / str(i) / "run", manifest, make_run()) for i in range(2)]
    assert len({run.part.model for run in read_runs(twins)}) == 2


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        read_runs([tmp_path])


@pytest.mark.parametrize("name", ["h200-7b-comparison", "h200-7b-hooks-float32", "h200-eventgpt-7b-eager"])
def test_older_runs(name: str) -> None:
    """Of every minor schema before this one: no roofline, some without probes."""
    runs = read_runs([BENCHMARKS / name])
    assert all(run.part.summary is not None and run.part.measured for run in runs)
    assert all(run.frames is not None and run.frames.read(run.part.records[0].media_sha256) is None for run in runs)
