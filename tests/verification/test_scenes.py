"""Check ``scenes-apart``, and the models that it catches."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.verification import disguises
from tests.verification.disguises import disguised
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.events import read_events, write_eventgpt_npy
from unfuse.loading import load
from unfuse.samples import Sample
from unfuse.samples.demo import demo_sample as demo
from unfuse.samples.variants import with_frames
from unfuse.verification import scenes
from unfuse.verification.checks import prepare_subject
from unfuse.verification.scenes import scenes_apart

CORRECT = (
    "ByPixels", "ByMediaHash", "FilesByContent", "PixelsByHash", "PixelsOfFramesByHash", "FeaturesOfFramesByHash",
)  # fmt: skip
STALE = {
    "FirstScene": "encode: the second scene has the first one's features",
    "PreviousScene": "encode: the second scene has the first one's features",
    "Blends": "encode: the first scene has other features after the second",
    "ByShape": "encode: the second scene has the first one's features",
    "ByQuestion": "encode: the second scene has the first one's features",
    "ByFrameCount": "encode: the second scene has the first one's features",
    "ByInputIds": "encode: the second scene has the first one's features",
    "ByFewPixels": "encode: no effect of one square",
    "ByFirstFrame": "encode: no effect of one square of frame 1",
    "ByMean": "encode: no effect of",
    "ByHistogram": "encode: no effect of two exchanged pixel values",
    "FirstFrame": "encode: no effect of one square of frame 1",
    "LeavesOutLastFrame": "encode: no effect of one square of frame 4",
    "SortsFrames": "encode: no effect of the order of the frames",
    "Coarse": "prefill: logits of the first scene are not those of its fused call",
    "SwapsBatch": "encode_batch: scene 1 of 2 has not its own features",
    "FilesByPath": "load: not the frames of a recording at the path of another one",
    "FilesByName": "load: frames of a file of the same name in another folder",
    "FilesBySize": "load: frames of a file of the same name in another folder",
    "FilesBySampleId": "load: the second scene has the first one's frame 0, 1, 2, 3, 4",
    "LastFrameOfPreviousFile": "load: the first scene has other frames after the second",
    "FirstEventWins": "load: not the frames of events in reverse order",
    "PixelsByShape": "preprocess: the second scene has the first one's pixels",
    "StalePrefix": "prefill: a cached prefix changes the logits of the second scene",
    "PromptOfFirstScene": "prefill: logits of the second scene are not those of its fused call",
}


@pytest.fixture(scope="module")
def second():
    return demo("demo:1")


def check(model, sample, *others):
    return scenes_apart(prepare_subject(model, sample, 6), others)


def test_the_sound_model_passes(demo_model, demo_sample, second):
    result = check(demo_model, demo_sample, second)
    assert (result.name, result.status) == ("scenes-apart", "pass"), result


@pytest.mark.parametrize("name", CORRECT)
def test_a_correct_memo_passes(small_model, small_sample, name):
    """A benchmark finds it: the results are right."""
    result = check(disguised(small_model, getattr(disguises, name)), small_sample)
    assert result.status == "pass", result


@pytest.mark.parametrize("name", STALE)
def test_results_of_another_scene_are_caught(small_model, small_sample, monkeypatch, name):
    monkeypatch.setattr("unfuse.verification.scenes._SHOWN", 20)
    result = check(disguised(small_model, getattr(disguises, name)), small_sample)
    assert result.status == "fail", result
    assert STALE[name] in result.observed, result.observed


def test_an_answer_to_another_prompt_is_caught(demo_model, demo_sample, second):
    model = disguised(demo_model, EventGPTAdapter, disguises.AnswersByLength)
    result = check(model, demo_sample, second)
    assert "decode: tokens of the second scene are not those of its logits" in result.observed


@pytest.mark.parametrize("name", ["random:llava-tiny", "random:video-llava-tiny"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_other_families_pass(demo_sample, name, dtype):
    with load(name, device="cpu", dtype=dtype) as model:
        result = check(model, demo_sample)
    assert result.status == "pass", result


def test_frames_in_memory_and_pictures_pass(small_model, small_sample, tmp_path):
    from PIL import Image

    frames = small_model.load(small_sample).frames[:2]
    assert check(small_model, Sample.from_frames(frames)).status == "pass"
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, frame in zip(paths, frames, strict=True):
        Image.fromarray(frame).save(path)
    assert check(small_model, Sample.from_frames(paths)).status == "pass"


def test_a_sample_without_media_is_skipped():
    with load("random:llava-tiny", device="cpu") as model:
        assert check(model, Sample(sample_id="text", question="What is it?")).status == "skip"


def cut(sample, folder, name, part):
    """Return a recording of some events of a sample's."""
    stream = read_events(sample.event_data)
    columns = {column: getattr(stream, column)[part] for column in "xytp"}
    write_eventgpt_npy(folder / name, replace(stream, **columns))
    return Sample.from_events(folder / name)


@pytest.mark.parametrize("number", [5, 6, 7, 11, 20])
def test_a_recording_of_a_few_events_passes(demo_model, demo_sample, tmp_path, number):
    """Its frames are small or thin, and alike where a crop leaves them."""
    assert check(demo_model, cut(demo_sample, tmp_path, "few.npy", slice(number))).status == "pass"


def test_rows_about_one_recording_pass(small_model, small_sample):
    """A data set asks several questions about a scene; one of them is the question of this check."""
    for question in scenes._FURTHER_QUESTIONS:
        rows = [replace(small_sample, sample_id=str(index), question=question) for index in range(2)]
        result = check(small_model, *rows)
        assert result.status == "pass", result


def test_windows_that_share_frames_pass(small_model, small_sample):
    frames = small_model.load(small_sample).frames
    windows = [with_frames(small_sample, frames[part]) for part in (slice(0, 4), slice(1, 5))]
    shared = [with_frames(small_sample, [*frames[:3], frame]) for frame in frames[3:]]
    for first, second in (windows, shared):
        assert check(small_model, first, second).status == "pass"
