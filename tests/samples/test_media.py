"""Pictures as people have them: turned, transparent, with 16 bits."""

from __future__ import annotations

import io
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageOps

from unfuse.errors import MediaError
from unfuse.samples.media import read_image

PICTURE = np.zeros((40, 60, 3), np.uint8)
PICTURE[:20, :30], PICTURE[20:, :30], PICTURE[:20, 30:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def saved(path, image, **options):
    image.save(path, **options)
    return read_image(path)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_pictures_are_turned_as_exif_says(tmp_path, orientation, name):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if name == "a.webp" else {"quality": 95} if name == "a.jpg" else {}
    ours = saved(tmp_path / name, Image.fromarray(PICTURE), exif=exif, **options)
    with Image.open(tmp_path / name) as image:
        theirs = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(ours, theirs)
    assert ours.shape == ((60, 40, 3) if orientation > 4 else (40, 60, 3))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"junk"]
)
def test_damaged_exif_turns_nothing(tmp_path, exif):
    assert saved(tmp_path / "a.jpg", Image.fromarray(PICTURE), exif=exif).shape == PICTURE.shape


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_of_16_bits_is_scaled(tmp_path, name):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    grey = saved(tmp_path / name, Image.fromarray(ramp))
    assert np.array_equal(grey[..., 0], np.rint(ramp / 257))
    assert (grey == grey[..., :1]).all()
    assert len(np.unique(grey)) == 256


def test_big_endian_grey(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(">u2")
    image = Image.frombytes("I;16B", (64, 48), ramp.tobytes())
    assert np.array_equal(saved(tmp_path / "a.tif", image)[..., 0], np.rint(ramp / 257))


def test_a_transparent_value_of_16_bit_grey(tmp_path):
    values = np.full((8, 8), 300, np.uint16)
    values[:4] = 40_000
    grey = saved(tmp_path / "a.png", Image.fromarray(values), transparency=300)
    assert np.unique(grey[:4]).tolist() == [156]
    assert np.unique(grey[4:]).tolist() == [255]


def test_values_without_a_range_are_refused(tmp_path):
    for image in (Image.fromarray(np.zeros((8, 8), np.float32)), Image.fromarray(np.zeros((8, 8), np.int32))):
        with pytest.raises(MediaError, match="mode [FI], expected 8 or 16 bits"):
            saved(tmp_path / "a.tif", image)


def logo():
    """Black in the middle; hidden colours elsewhere."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    pixels[..., 3] = 0
    pixels[10:30, 20:40] = (0, 0, 0, 255)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    image = logo()
    if mode == "LA":
        image = image.convert("LA")
    if mode == "P":
        image = Image.fromarray((np.asarray(image)[..., 3] > 0).astype(np.uint8))
        image.putpalette([9, 99, 200, 0, 0, 0])
    shown = saved(tmp_path / "a.png", image, **({"transparency": 0} if mode == "P" else {}))
    assert np.unique(shown[10:30, 20:40]).tolist() == [0]
    shown = shown.copy()
    shown[10:30, 20:40] = 255
    assert np.unique(shown).tolist() == [255]


def test_half_transparent_and_one_transparent_colour(tmp_path):
    half = np.zeros((4, 4, 4), np.uint8)
    half[..., 3] = 128
    assert abs(int(saved(tmp_path / "a.png", Image.fromarray(half))[0, 0, 0]) - 127) <= 1
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2] = (1, 2, 3)
    shown = saved(tmp_path / "b.png", Image.fromarray(colours), transparency=(1, 2, 3))
    assert shown[0, 0].tolist() == [255, 255, 255]
    assert shown[3, 3].tolist() == [0, 0, 0]


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr"])
def test_opaque_pictures_are_pillows(tmp_path, mode):
    image = Image.fromarray(PICTURE).convert(mode)
    name = "a.jpg" if mode in ("CMYK", "YCbCr") else "a.png"
    ours = saved(tmp_path / name, image)
    with Image.open(tmp_path / name) as again:
        assert np.array_equal(ours, np.asarray(again.convert("RGB")))
    assert not ours.flags.writeable


def test_a_png_that_claims_gigabytes(tmp_path):
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, "PNG")
    data = file.getvalue()
    at = data.index(b"IDAT")
    (tmp_path / "a.png").write_bytes(data[: at - 4] + b"\xff\xff\xff\xf0" + data[at:])
    with suppress(MediaError):  # never a MemoryError
        assert np.array_equal(read_image(tmp_path / "a.png"), PICTURE)


def test_a_picture_that_takes_too_much_memory(tmp_path, monkeypatch):
    Image.fromarray(PICTURE).save(tmp_path / "a.png")

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("unfuse.samples.media._rgb", full)
    with pytest.raises(MediaError, match="found a picture that takes too much memory"):
        read_image(tmp_path / "a.png")
