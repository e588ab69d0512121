"""Clocks of the events and of the camera beside them."""

from __future__ import annotations

import pytest

from unfuse.errors import DatasetError
from unfuse.samples.build import Plan
from unfuse.samples.sources import Recording

OFFSET = 49_599_300_000


def recording(folder, times, *, first=0, last=400_000, offset=OFFSET, names="{:06d}.png"):
    pictures = folder / "images" / "left" / "rectified"
    pictures.mkdir(parents=True)
    for number in range(len(times)):
        (pictures / names.format(number)).touch()
    (folder / "images" / "timestamps.txt").write_text("\n".join(map(str, times)))
    made = Recording("seq", "test", folder / "events.h5", folder)
    made.__dict__["facts"] = {"events": 9, "span": [first, last], "t_offset": offset}
    made.__dict__["is_dsec"] = True
    return made


PLAIN = [OFFSET + n * 50_000 for n in range(8)]


def test_the_offset_is_subtracted(tmp_path):
    camera = recording(tmp_path, PLAIN).camera
    assert camera.times_us[:2] == (0, 50_000)
    assert camera.notes == ()


def test_events_that_hold_the_offset_already(tmp_path):
    made = recording(tmp_path, PLAIN, first=OFFSET, last=OFFSET + 400_000)
    assert made.camera.times_us[:2] == (OFFSET, OFFSET + 50_000)
    assert "event times include t_offset" in made.notes[0]


@pytest.mark.parametrize(
    ("times", "more", "seconds"),
    [
        (PLAIN, {"offset": 0}, 49599),
        ([n * 50_000 + 7_000_000 for n in range(8)], {"offset": 0}, 7),
        ([time * 1000 for time in PLAIN], {}, 49549701),
        ([n * 50_000 for n in range(8)], {"first": 90_000_000, "last": 91_000_000, "offset": 0}, 90),
    ],
)
def test_clocks_that_differ(tmp_path, times, more, seconds):
    with pytest.raises(DatasetError) as caught:
        _ = recording(tmp_path, times, **more).camera.files
    message = str(caught.value)
    assert f"0 of 8 pictures fall into a window; clocks differ by {seconds} s" in message
    assert message.startswith(str(tmp_path / "images" / "timestamps.txt"))


def test_pictures_in_natural_order(tmp_path):
    made = recording(tmp_path, [OFFSET + n * 1000 for n in range(12)], names="img{}.jpg")
    (tmp_path / "images" / "left" / "rectified" / "._img0.jpg").touch()
    assert [path.stem for path in made.camera.files] == [f"img{n}" for n in range(12)]


def test_pictures_outside_every_window_are_counted(tmp_path):
    made = recording(tmp_path, PLAIN)
    assert Plan(((made, ()),), 0).notes == ("seq: 0 of 8 pictures fall into a window",)
