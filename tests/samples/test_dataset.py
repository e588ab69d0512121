"""The instruction-set layout: its fields, and each defect named by its row."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from unfuse.errors import DatasetError, FileAccessError, MediaError, PromptError
from unfuse.events import event_frames, write_eventgpt_npy
from unfuse.samples import Sample, clean_question, read_dataset
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.samples.media import read_image
from unfuse.stages import DEFAULT_QUESTION
from unfuse.testing import synthetic_stream


@pytest.fixture
def root(tmp_path):
    (tmp_path / "event_npy").mkdir()
    (tmp_path / "event_image").mkdir()
    stream = synthetic_stream(500)
    write_eventgpt_npy(tmp_path / "event_npy" / "a.npy", stream)
    Image.fromarray(event_frames(stream)[0]).save(tmp_path / "event_image" / "a.png")
    return tmp_path


def write(root, *rows):
    (root / MANIFEST_NAME).write_text(json.dumps(rows))
    return root


def test_a_full_row(root):
    turns = [{"from": "human", "value": "<event>\nWhat moves?"}, {"from": "gpt", "value": "A car."}]
    row = {
        "id": "s/1", "split": "test", "event_data": "a.npy", "event_image": ["a.png"], "video_data": "v",
        "mp4_data": "v.mp4", "conversations": turns,
    }  # fmt: skip
    (sample,) = read_dataset(write(root, row)).samples
    assert sample.sample_id == "s/1"
    assert sample.question == "What moves?"
    assert sample.reference == "A car."
    assert sample.event_data == root / "event_npy" / "a.npy"
    assert sample.event_image == (root / "event_image" / "a.png",)
    assert sample.video == root / "mp4" / "v.mp4"
    assert sample.video_frames == root / "video" / "v"


def test_absent_and_empty_media(root):
    (sample,) = read_dataset(write(root, {"event_data": "a.npy", "event_image": [], "mp4_data": None})).samples
    assert (sample.event_image, sample.video, sample.question) == ((), None, DEFAULT_QUESTION)
    assert sample.sample_id == "0"


def test_ids_are_made_unique(root):
    rows = [{"id": i, "event_data": "a.npy"} for i in ("a", "a", "a#2", "a", "b")]
    ids = [sample.sample_id for sample in read_dataset(write(root, *rows)).samples]
    assert ids[0] == "a"
    assert ids[4] == "b"
    assert len(set(ids)) == 5


def test_max_samples(root):
    rows = [{"id": i, "event_data": "a.npy"} for i in range(5)]
    assert len(read_dataset(write(root, *rows), max_samples=3).samples) == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"id": 1}, "row 1: found no media"),
        ({"event_data": ["a.npy"]}, "event_data: found list"),
        ({"event_image": "a.png"}, "event_image: found str"),
        ({"event_data": "../../etc/passwd"}, "a path below event_npy/"),
        ({"event_data": "/etc/passwd"}, "a path below event_npy/"),
        ({"event_image": ["../x.png"]}, "a path below event_image/"),
        ("text", "row 1: found str"),
        ({"event_data": "a.npy", "conversations": "hello"}, "a list of turns"),
        ({"event_data": "a.npy", "conversations": [{"from": "human", "value": 3}]}, "expected text"),
    ],
)
def test_malformed_rows(root, row, words):
    with pytest.raises(DatasetError, match=words):
        read_dataset(write(root, {"event_data": "a.npy"}, row))


@pytest.mark.parametrize("text", ["", "{", "[1, 2", "{}", "[]", "null", "[" * 100_000])
def test_malformed_json(root, text):
    (root / MANIFEST_NAME).write_text(text)
    with pytest.raises(DatasetError):
        read_dataset(root)


def test_no_folder_no_json(tmp_path):
    with pytest.raises(DatasetError, match="no such folder"):
        read_dataset(tmp_path / "none")
    with pytest.raises(DatasetError, match=MANIFEST_NAME):
        read_dataset(tmp_path)


def test_every_medium_is_checked(root):
    rows = [{"event_data": "a.npy"}, {"event_data": "gone.npy"}]
    with pytest.raises(FileAccessError, match=r"gone\.npy"):
        read_dataset(write(root, *rows)).check_media()
    with pytest.raises(DatasetError, match="first of 2 defects"):
        read_dataset(write(root, *rows, {"event_image": ["gone.png"]})).check_media()


def test_hash_covers_files_ids_and_questions(root):
    first = read_dataset(write(root, {"id": 1, "event_data": "a.npy"})).sha256()
    assert read_dataset(write(root, {"id": 1, "event_data": "a.npy"})).sha256() == first
    assert read_dataset(write(root, {"id": 2, "event_data": "a.npy"})).sha256() != first
    write_eventgpt_npy(root / "event_npy" / "a.npy", synthetic_stream(500, seed=1))
    assert read_dataset(write(root, {"id": 1, "event_data": "a.npy"})).sha256() != first


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ("<event>\nWhat?", "What?"),
        ("<event>What?", "What?"),
        ("  What? ", "What?"),
        ("", DEFAULT_QUESTION),
        (None, DEFAULT_QUESTION),
        ("<event>\n", DEFAULT_QUESTION),
        ("Is 3 < 4 > 2?", "Is 3 < 4 > 2?"),
    ],
)
def test_questions(text, question):
    assert clean_question(text) == question


@pytest.mark.parametrize("text", ["<event>\n<event>\nWhat?", "a <ev_patch> b", "</s>", "What?<event>", "<image>"])
def test_special_tokens_are_refused(text):
    with pytest.raises(PromptError, match="special token"):
        clean_question(text)


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "claims gigabytes"])
def test_damaged_images(root, damage):
    path = root / "event_image" / "a.png"
    data = path.read_bytes()
    path.write_bytes(
        {
            "empty": b"",
            "truncated": data[: len(data) // 2],
            "text": b"not a picture",
            "claims gigabytes": data[:16] + (100_000).to_bytes(4, "big") * 2 + data[24:],
        }[damage]
    )
    with pytest.raises(MediaError) as error:
        read_image(path)
    assert str(path) in str(error.value)


def test_samples_from_frames(root):
    frames = event_frames(synthetic_stream(500))
    assert len(Sample.from_frames(frames).frames) == 5
    for bad in ([], [frames[0], "a.png"], [frames[0].astype(float)], [frames[0][..., 0]]):
        with pytest.raises(MediaError):
            Sample.from_frames(bad)


@pytest.mark.parametrize(
    ("name", "field"),
    [("a.npy", "event_data"), ("a.h5", "event_data"), ("a.MP4", "video"), ("a.webm", "video"), ("a.png", "image")],
)
def test_files_are_recognized_by_their_names(name, field):
    assert getattr(Sample.from_file(name), field) == Path(name)


def test_a_folder_is_frames_of_a_video(tmp_path):
    assert Sample.from_file(tmp_path).video_frames == tmp_path
