"""Order of the pictures of a folder, and the files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.samples import Sample
from unfuse.samples.frame_files import frame_files, natural_key


@pytest.mark.parametrize(
    "names",
    [
        [f"{n}.png" for n in range(12)],
        [f"frame{n}.jpg" for n in (1, 2, 9, 10, 11, 100)],
        ["a1_9.png", "a1_10.png", "a2_1.png", "a10_1.png"],
        ["Frame1.PNG", "frame2.png", "FRAME10.Png"],
        ["frame.png", "frame1.png", "frame2.png"],
        ["0001.png", "0002.png", "0010.png"],
        ["1403636579.763555.png", "1403636579.813555.png", "1403636580.003555.png"],
        ["f01.png", "f1.png", "f2.png"],
        ["clip (1).webp", "clip (2).webp", "clip (10).webp"],
    ],
)
def test_natural_order(tmp_path, names):
    for name in sorted(names):
        (tmp_path / name).touch()
    for other in ("._frame1.png", ".hidden.jpg", ".DS_Store", "Thumbs.db", "notes.txt", "desktop.ini"):
        (tmp_path / other).touch()
    assert [path.name for path in frame_files(tmp_path)] == names
    assert [path.name for path in Sample.from_video(tmp_path).video_files] == names


def test_no_folder(tmp_path):
    assert frame_files(tmp_path / "none") == ()


@examples(100)
@given(st.lists(st.text("aB19._-٣", min_size=1, max_size=8)))
def test_any_names_have_an_order(names):
    paths = [Path(f"{name}.png") for name in names]
    backward = paths[::-1]
    assert sorted(paths, key=natural_key) == sorted(backward, key=natural_key)
