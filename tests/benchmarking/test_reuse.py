"""A benchmark is INVALID if the model reuses results between runs, and says so."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest

from tests.benchmarking.benching import bench
from tests.verification import disguises
from tests.verification.disguises import disguised
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.benchmarking import PROTOCOLS, BenchSettings, reuse
from unfuse.benchmarking.reuse import reuse_of
from unfuse.benchmarking.setup import BenchSetup
from unfuse.events import read_events, write_eventgpt_npy
from unfuse.loading import load
from unfuse.measure.clock import NoClock
from unfuse.measure.timers import HostTimer
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel

MEMOS = {
    "ByPixels": "encode of a measured sample has",
    "ByMediaHash": "encode of a measured sample has",
    "FeaturesOfFramesByHash": "encode of a measured sample has",
    "FirstScene": "encode gives other media the features of a measured sample",
    "ByShape": "encode gives other media the features of a measured sample",
    "ByQuestion": "encode gives other media the features of a measured sample",
    "ByFewPixels": "encode of a measured sample has",
    "FilesByPath": "load of a measured sample has",
    "FilesByName": "load gives other events the frames of a measured sample",
    "FilesByContent": "load of a measured sample has",
    "FilesBySize": "load gives other events the frames of a measured sample",
    "PixelsByHash": "preprocess of a measured sample has",
    "PixelsOfFramesByHash": "preprocess of a measured sample has",
    "PixelsByShape": "preprocess gives other media the pixels of a measured sample",
}


def of(model, sample, protocol="decoupled"):
    setup = BenchSetup(
        model=model, protocol=PROTOCOLS[protocol], settings=BenchSettings(max_new_tokens=2), timer=HostTimer()
    )
    setup.run_staged(sample, NoClock())
    return reuse_of(setup, sample)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_sound_model_reuses_nothing(demo_model, demo_sample, protocol):
    found = of(demo_model, demo_sample, protocol)
    assert found.findings == ()
    for stage, each in found.stages.items():
        assert (each.again.operators, each.again.elements) == (each.new.operators, each.new.elements), stage
    assert found.stages["load"].again.read_bytes >= demo_sample.event_data.stat().st_size


@pytest.mark.parametrize("name", ["random:llava-tiny", "random:video-llava-tiny"])
def test_other_families_reuse_nothing(demo_sample, name):
    with load(name, device="cpu") as model:
        assert of(model, demo_sample).findings == ()


@pytest.mark.parametrize("name", MEMOS)
def test_a_memo_is_found(small_model, small_sample, name):
    found = of(disguised(small_model, getattr(disguises, name)), small_sample)
    assert any(MEMOS[name] in finding for finding in found.findings), found


def test_a_memo_of_the_bytes_of_files_is_found(small_model, small_sample, monkeypatch):
    """It parses and draws the events each time."""
    import io
    import os
    from pathlib import Path

    copies, opened = {}, Path.open

    class Copy(io.BytesIO):
        def __init__(self, path):
            super().__init__(copies[path])
            self._path = path

        def fileno(self):
            return files.setdefault(self._path, os.open(self._path, os.O_RDONLY))

    files = {}

    def opens(path, mode="r", *given, **named):
        if mode != "rb" or path.suffix != ".npy":
            return opened(path, mode, *given, **named)
        if path not in copies:
            with opened(path, mode) as file:
                copies[path] = file.read()
        return Copy(path)

    monkeypatch.setattr(Path, "open", opens)
    findings = of(small_model, small_sample).findings
    assert any(finding.startswith("load of a measured sample has 0 of the 6") for finding in findings), findings


def test_a_memo_of_prefill_is_found(small_model, small_sample):
    model = disguised(small_model, EventGPTAdapter, disguises.PrefillByPrompt)
    (finding,) = of(model, small_sample).findings
    assert finding.startswith("prefill of a measured sample has 10 of the")


def test_a_memo_of_the_fused_call_is_found(small_model, small_sample):
    class Fused(disguises.Remembers):
        def fused_generate(self, prepared, **settings):
            key = prepared[0].pixel_values.numpy().tobytes(), str(settings)
            return self.once(key, lambda: EventGPTAdapter.fused_generate(self, prepared, **settings))

    for protocol in ("fused", "hooked"):
        findings = of(disguised(small_model, Fused), small_sample, protocol).findings
        assert any("fused_generate of a measured sample has" in finding for finding in findings), findings


def test_a_memo_that_takes_no_new_scene_is_found(small_model, small_sample):
    """It is full after the samples of the benchmark."""

    class Full(disguises.ByPixels):
        def once(self, key, make):
            return super().once(key, make) if key in self.memory or not self.memory else make()

    findings = of(disguised(small_model, Full), small_sample).findings
    assert any("encode of a measured sample has" in finding for finding in findings), findings


def test_a_memo_outside_of_torch_is_found_by_time(small_model, small_sample, fake_time, monkeypatch):
    """As in a process of its own: the operators that torch sees are equal."""

    class Elsewhere(StagedModel):
        seen: ClassVar[set[bytes]] = set()

        def encode(self, source):
            key = source.pixel_values.numpy().tobytes()
            fake_time.sleep(0.001 if key in self.seen else 0.01)
            self.seen.add(key)
            return super().encode(source)

    monkeypatch.setattr(reuse, "PAIRS", 7)
    found = of(Elsewhere("elsewhere", small_model.adapter, small_model.engine), small_sample)
    assert found.findings == ("encode of a measured sample takes 10% of the time of new media",)
    assert found.stages["encode"].time_ratio == pytest.approx(0.1)


def test_pictures_and_frames_in_memory(small_model, small_sample, tmp_path):
    from PIL import Image

    frames = small_model.load(small_sample).frames[:2]
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    for sample in (Sample.from_frames(frames), Sample.from_frames(paths)):
        assert of(small_model, sample).findings == ()
    findings = of(disguised(small_model, disguises.FilesByContent), Sample.from_frames(paths)).findings
    assert any(finding.startswith("load of a measured sample has") for finding in findings)


def test_a_sample_without_media_is_not_compared():
    with load("random:llava-tiny", device="cpu") as model:
        found = of(model, Sample(sample_id="text", question="What is it?"))
    assert found.reason == "the sample has no media"


def test_a_reused_prefix_is_allowed_where_requested(small_model, small_sample):
    model = disguised(small_model, EventGPTAdapter, disguises.PrefillByPrompt)
    setup = BenchSetup(
        model=model, protocol=PROTOCOLS["decoupled"], settings=BenchSettings(reuse=True), timer=HostTimer()
    )
    assert reuse_of(setup, small_sample).findings == ()


def test_a_run_with_a_memo_is_invalid(small_model, small_sample, guard, tmp_path):
    data = Dataset(name="one", samples=(replace(small_sample, question="What moves?"),))
    model = disguised(small_model, disguises.ByPixels)
    run = bench(model, data, guard, noise_repeats=5, output=tmp_path / "run")
    verdict = run.summary().verdict
    assert verdict.word == "INVALID"
    assert any(reason.startswith("results were reused: encode of a measured sample has") for reason in verdict.reasons)
    assert "results were reused: encode" in (tmp_path / "run" / "report.md").read_text()
    sound = bench(small_model, data, guard, noise_repeats=5)
    assert not any("reused" in reason for reason in sound.summary().verdict.reasons)


@pytest.mark.parametrize("number", [5, 7, 20])
def test_a_recording_of_a_few_events_reuses_nothing(small_model, small_sample, tmp_path, number):
    """Few random polarities may equal those of the recording; the last event never does."""
    stream = read_events(small_sample.event_data)
    few = replace(stream, **{column: getattr(stream, column)[:number] for column in "xytp"})
    write_eventgpt_npy(tmp_path / "few.npy", few)
    assert of(small_model, Sample.from_events(tmp_path / "few.npy")).findings == ()
