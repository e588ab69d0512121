"""Input of a model of camera frames: image, video, folder of frames, or event frames with a note."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unfuse.adapters import media
from unfuse.adapters.media import (
    evenly,
    event_frames_sha256,
    load_event_frames,
    load_frames,
    middle,
    selected_frames_sha256,
)
from unfuse.errors import FileAccessError, MediaError, MissingPackageError
from unfuse.samples import Sample
from unfuse.samples.dataset import Dataset
from unfuse.samples.video import count_frames, read_frames

TOTAL = 20


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """20 frames; frame i is a grey of level 12 i."""
    import av

    path = tmp_path_factory.mktemp("video") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(TOTAL):
            picture = np.full((48, 64, 3), 12 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def level(frame):
    return round(float(frame.mean()) / 12)


@given(st.integers(1, 500))
def test_evenly_spaced(total):
    """As the model card has it: ``arange(0, total, total / 8)``; short videos repeat frames."""
    indices = evenly(8)(total)
    assert indices == [int(i * total / 8) for i in range(8)]
    assert indices[0] == 0
    assert all(0 <= i < total for i in indices)
    assert 0 <= middle(total)[0] < total


def test_frames_of_a_video(video):
    assert count_frames(video) == TOTAL
    frames = read_frames(video, [0, 7, 7, 19])
    assert [level(frame) for frame in frames] == [0, 7, 7, 19]
    assert frames[0].shape == (48, 64, 3)
    assert not frames[0].flags.writeable


def test_video_models_see_eight_and_image_models_the_middle(video):
    sample = Sample.from_video(video)
    eight = load_frames(sample, evenly(8))
    assert [level(frame) for frame in eight.frames] == [0, 2, 5, 7, 10, 12, 15, 17]
    assert eight.media == "video"
    one = load_frames(sample, middle)
    assert [level(frame) for frame in one.frames] == [10]
    assert eight.media_sha256 != one.media_sha256, "other frames of one file are other media"


def test_folder_of_frames(tmp_path):
    for i in range(5):
        Image.fromarray(np.full((20, 30, 3), 12 * i, np.uint8)).save(tmp_path / f"{i:03d}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    loaded = load_frames(Sample.from_video(tmp_path), evenly(8))
    assert [level(frame) for frame in loaded.frames] == [0, 0, 1, 1, 2, 3, 3, 4]
    assert loaded.media == "video_frames"


def test_image(tmp_path):
    Image.fromarray(np.full((20, 30, 3), 24, np.uint8)).save(tmp_path / "a.png")
    assert [level(f) for f in load_frames(Sample.from_image(tmp_path / "a.png"), evenly(8)).frames] == [2]


def test_a_row_of_events_gives_its_event_frames_and_says_so(demo_sample):
    loaded = load_frames(demo_sample, evenly(8))
    assert len(loaded.frames) == 8
    assert loaded.media == "event_data"
    assert loaded.num_events > 0
    assert "no video or image: this model was shown event frames" in loaded.notes


def test_text_alone():
    loaded = load_frames(Sample(sample_id="a", question="Say something."), middle)
    assert (loaded.frames, loaded.media) == ([], "text")


@pytest.mark.parametrize("content", [b"", b"not a video at all", b"\x00\x00\x00\x18ftypmp42" + b"\0" * 64])
def test_damaged_files_are_one_line(tmp_path, content):
    path = tmp_path / "bad.mp4"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=r"bad\.mp4: found no") as caught:
        count_frames(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(MediaError):
        read_frames(path, [0])


def test_truncated_video(tmp_path, video):
    data = video.read_bytes()
    refused = 0
    for keep in range(0, len(data), max(1, len(data) // 40)):
        path = tmp_path / "truncated.mp4"
        path.write_bytes(data[:keep])
        try:
            read_frames(path, evenly(8)(count_frames(path)))
        except MediaError:
            refused += 1
    assert refused > 20, "most of a file is not a file"


def test_missing_file_and_frame(tmp_path, video):
    with pytest.raises(FileAccessError, match="no such file"):
        count_frames(tmp_path / "nowhere.mp4")
    with pytest.raises(MediaError, match="no frame 99"):
        read_frames(video, [0, 99])


def test_missing_pyav_is_one_line(monkeypatch, video):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackageError, match=r"PyAV is not installed.*unfuse\[video\]"):
        count_frames(video)


def test_media_are_checked_for_the_kinds_that_are_read(tmp_path, demo_sample):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    both = Sample(sample_id="a", event_data=demo_sample.event_data, video=tmp_path / "bad.mp4")
    Dataset(name="d", samples=(both,)).check_media()
    with pytest.raises(MediaError, match=r"bad\.mp4"):
        Dataset(name="d", samples=(both,)).check_media(events=False, video=True)
    film = Sample(sample_id="b", video=tmp_path / "bad.mp4")
    with pytest.raises(MediaError, match="no events"):
        Dataset(name="d", samples=(film,)).check_media()
    empty = tmp_path / "frames"
    empty.mkdir()
    with pytest.raises(MediaError, match="no pictures"):
        Dataset(name="d", samples=(Sample.from_video(empty),)).check_media(events=False, video=True)


@pytest.fixture
def every_medium(tmp_path, video, demo_sample):
    """One sample of each kind, by name."""
    folder = tmp_path / "frames"
    folder.mkdir()
    pictures = [folder / f"{i}.png" for i in range(3)]
    for i, path in enumerate(pictures):
        Image.fromarray(np.full((20, 30, 3), 12 * i, np.uint8)).save(path)
    return {
        "image": Sample.from_image(pictures[0]),
        "video": Sample.from_video(video),
        "video_frames": Sample.from_video(folder),
        "event_data": demo_sample,
        "event_image": Sample.from_frames(pictures),
        "frames": Sample.from_frames([np.zeros((8, 8, 3), np.uint8)]),
    }


@pytest.mark.parametrize("pick", [evenly(8), middle])
def test_the_hash_is_had_without_decoding(every_medium, pick, monkeypatch):
    """It is the one that loading gives, and no two of other media or other frames are alike."""
    loaded = {kind: load_frames(sample, pick) for kind, sample in every_medium.items()}
    assert {kind: found.media for kind, found in loaded.items()} == {kind: kind for kind in every_medium}
    events = {
        kind: load_event_frames(every_medium[kind]).media_sha256 for kind in loaded if every_medium[kind].has_events
    }
    for name in ("read_image", "read_events", "event_frames", "select_frames"):
        monkeypatch.setattr(media, name, lambda *_, **__: pytest.fail("something was decoded"))
    assert {k: selected_frames_sha256(s, pick) for k, s in every_medium.items()} == {
        k: f.media_sha256 for k, f in loaded.items()
    }
    assert {k: event_frames_sha256(every_medium[k]) for k in events} == events
    assert len({*events.values(), *(found.media_sha256 for found in loaded.values())}) == len(events) + len(loaded)


def test_a_file_that_changes_as_it_is_read_is_refused(tmp_path, monkeypatch):
    """Otherwise the features would be stored under the hash of the old or of the new content."""
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
    read = media.read_image

    def overtaken(source):
        frame = read(source)
        Image.fromarray(np.ones((20, 30, 3), np.uint8)).save(source)
        return frame

    monkeypatch.setattr(media, "read_image", overtaken)
    for load in (
        lambda: load_frames(Sample.from_image(path), middle),
        lambda: load_event_frames(Sample.from_frames([path])),
    ):
        Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(path)
        with pytest.raises(MediaError, match="changed as they were read"):
            load()


def test_a_file_written_twice_within_a_tick_has_two_hashes(tmp_path):
    """The disk's clock may not have moved between: size, time and inode are then the same."""
    import os

    from unfuse.samples.file_hash import file_sha256

    path, seen = tmp_path / "a", set()
    path.write_bytes(b"0")
    at = path.stat().st_mtime_ns
    for digit in b"0123456789":
        with path.open("r+b") as file:
            file.write(bytes([digit]))
        os.utime(path, ns=(at, at))
        seen.add(file_sha256(path))
    assert len(seen) == 10
