"""What a model of camera frames is shown: image, video, folder of frames, or event frames with a note."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unfuse.adapters.media import evenly, load_frames, middle
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
        path = tmp_path / "cut.mp4"
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


def test_media_are_checked_for_those_who_are_shown_them(tmp_path, demo_sample):
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
