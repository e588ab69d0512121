"""Frame strips for the report: stored after all measuring, once per medium, and again if a run was interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarking.benching import Listener
from unfuse.benchmarking import BenchSettings, RunOptions, bench_model
from unfuse.benchmarking.frame_strips import store_frames
from unfuse.errors import MediaError
from unfuse.records import RunFolder
from unfuse.records.frames import FrameStore
from unfuse.samples import Dataset
from unfuse.samples.demo import demo_dataset
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded

QUICK = {"max_new_tokens": 3, "num_warmups": 1, "noise_repeats": 1, "balance_seconds": 0.0}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    """Three samples of two scenes."""
    first, second = demo_dataset(max_samples=2).samples
    again = replace(first, sample_id="again", question="What moves?")
    return Dataset(name="two scenes", samples=(first, second, again))


@pytest.fixture(scope="module")
def run(demo_model, dataset, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("pictures") / "run"
    return bench_model(demo_model, dataset, BenchSettings(**QUICK), RunOptions(output=run_dir))


def names(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.webp")}


def test_one_strip_per_medium(run):
    hashes = {record.media_sha256 for record in run.records}
    assert len(hashes) == 2
    assert names(run.folder / "frames") == hashes
    html = (run.folder / "report.html").read_text()
    assert html.count("data:image/webp;base64,") == 2
    assert html.count("data-media=") == 3


def test_a_resumed_run_has_every_strip(demo_model, dataset, tmp_path):
    """The control: frames that were there are not made again."""
    first = bench_model(demo_model, dataset, BenchSettings(**QUICK), RunOptions(output=tmp_path / "run"))
    intact, lost = sorted((tmp_path / "run" / "frames").iterdir())
    before = intact.stat().st_mtime_ns
    lost.unlink()
    (tmp_path / "run" / "report.html").unlink()
    again = bench_model(demo_model, dataset, BenchSettings(**QUICK), RunOptions(output=tmp_path / "run", resume=True))
    assert again.records == first.records
    assert lost.is_file()
    assert intact.stat().st_mtime_ns == before
    assert (tmp_path / "run" / "report.html").is_file()


def test_no_frames_are_loaded_for_strips_while_measuring(demo_model, dataset, tmp_path):
    events: list[str] = []

    class Watched(StagedModel):
        def load(self, sample):
            events.append(f"load {sample.sample_id}")
            return super().load(sample)

    model = Watched("watched", demo_model.adapter, demo_model.engine)
    run_dir = tmp_path / "run"

    def measured(index, record):
        assert not (run_dir / "frames").exists()
        events.append("record")

    options = RunOptions(output=run_dir, listener=Listener(record=measured))
    bench_model(model, dataset, BenchSettings(**QUICK), options)
    last = len(events) - 1 - events[::-1].index("record")
    assert "load demo:0" in events[last:]
    assert len(RunFolder.open(run_dir).records()) == events.count("record")


def test_a_medium_that_has_changed_is_left_out(demo_model, dataset, run, tmp_path):
    class Other(StagedModel):
        def load(self, sample) -> Loaded:
            if sample.sample_id == "demo:1":
                raise MediaError("gone", found="nothing")
            return replace(super().load(sample), media_sha256="0" * 64)

    store = FrameStore(tmp_path / "frames")
    store_frames(Other("other", demo_model.adapter, demo_model.engine), dataset, run.records, store)
    assert not store.path.exists()


def test_a_run_in_memory_stores_none_and_the_report_says_so(demo_model, dataset, tmp_path):
    run = bench_model(demo_model, dataset, BenchSettings(**QUICK))
    run.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "frames").exists()
    assert "The run holds no pictures for 3 of 3 rows." in (tmp_path / "saved" / "report.html").read_text()
