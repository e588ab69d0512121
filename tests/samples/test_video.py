"""Videos as people have them: trimmed, turned, mirrored."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest

from unfuse.adapters.media import evenly, middle
from unfuse.errors import MediaError
from unfuse.samples.video import check_video, count_frames, read_frames, select_frames

av = pytest.importorskip("av")
ONE = 0x10000


def video(path, *, frames=20, first=0, b_frames=0, picture=None, codec="libx264"):
    """Frame n has the grey level 10 n; frames before time 0 are hidden by an edit list."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"} if first else {}) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"bf": str(b_frames), "crf": "5"}
        stream.time_base = Fraction(1, 25)
        for number in range(frames):
            pixels = np.full((48, 64, 3), number * 10, np.uint8) if picture is None else picture
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number + first, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(frames):
    return [round(float(frame.mean()) / 10) for frame in frames]


@pytest.mark.parametrize("hidden", [0, 1, 8, 15])
@pytest.mark.parametrize("b_frames", [0, 2])
def test_only_shown_frames_count(tmp_path, hidden, b_frames):
    path = video(tmp_path / "a.mp4", first=-hidden, b_frames=b_frames)
    with av.open(str(path)) as container:
        shown = levels(frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
    assert shown == list(range(hidden, 20))
    assert count_frames(path) == 20 - hidden
    for pick in (middle, evenly(8)):
        wanted = [shown[index] for index in pick(len(shown))]
        assert levels(select_frames(path, pick)) == wanted
        assert levels(read_frames(path, pick(count_frames(path)))) == wanted


def test_a_wrong_guess_of_the_number_is_corrected(tmp_path, monkeypatch):
    """Packets are no frames in every format; the frames decide."""
    path = video(tmp_path / "a.mp4")
    for guess in (0, 12, 40):
        monkeypatch.setattr("unfuse.samples.video._packets", lambda _, guess=guess: guess)
        assert levels(select_frames(path, middle)) == [10]


def turned(path, matrix):
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd")
    start = at + 4 + (40 if data[at + 4] == 0 else 52)
    a, b, c, d = (value * ONE for value in matrix)
    struct.pack_into(">9i", data, start, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


PICTURE = np.zeros((48, 64, 3), np.uint8)
PICTURE[:24, :32], PICTURE[24:, :32], PICTURE[:24, 32:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.mark.parametrize(
    ("matrix", "expected"),
    [
        ((1, 0, 0, 1), PICTURE),
        ((0, 1, -1, 0), np.rot90(PICTURE, -1)),
        ((-1, 0, 0, -1), np.rot90(PICTURE, 2)),
        ((0, -1, 1, 0), np.rot90(PICTURE, 1)),
        ((-1, 0, 0, 1), PICTURE[:, ::-1]),
        ((1, 0, 0, -1), PICTURE[::-1]),
        ((0, 1, 1, 0), PICTURE.transpose(1, 0, 2)),
        ((0, -1, -1, 0), PICTURE.transpose(1, 0, 2)[::-1, ::-1]),
    ],
    ids=str,
)
def test_frames_are_upright(tmp_path, matrix, expected):
    path = turned(video(tmp_path / "a.mp4", frames=3, picture=PICTURE), matrix)
    (frame,) = read_frames(path, [1])
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected).mean() < 12
    assert not frame.flags.writeable
    assert frame.flags.c_contiguous


def test_an_empty_or_damaged_video(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"\0" * 64)
    for call in (check_video, count_frames, lambda each: select_frames(each, middle)):
        with pytest.raises(MediaError):
            call(path)
    check_video(video(tmp_path / "b.mp4", frames=2))
