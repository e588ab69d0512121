"""Paths that rows may name."""

from __future__ import annotations

import pytest

from unfuse.errors import DatasetError
from unfuse.samples.media_folder import MediaFolder


@pytest.fixture
def folder(tmp_path):
    for name in ("media/own", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.npy").touch()
    (tmp_path / "media" / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "media" / "out.npy").symlink_to(tmp_path / "elsewhere" / "a.npy")
    (tmp_path / "media" / "in").symlink_to("own")
    (tmp_path / "media" / "in.npy").symlink_to("own/a.npy")
    return tmp_path / "media"


def test_paths_inside(folder):
    media = MediaFolder(folder)
    for name in ("own/a.npy", "in/a.npy", "in.npy", "none.npy", "none/none.npy", "./own//a.npy"):
        assert media.path(name, "row") == folder / name
    for nothing in (None, "", []):
        assert media.path(nothing, "row") is None
    linked = folder.with_name("linked")
    linked.symlink_to(folder)
    assert MediaFolder(linked).path("own/a.npy", "row") == linked / "own" / "a.npy"


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../elsewhere/a.npy", "own/../../a", "a\0b", "out/a.npy", "out.npy", 3]
)
def test_paths_outside(folder, name):
    media = MediaFolder(folder)
    for _ in range(2):
        with pytest.raises(DatasetError, match="row: found"):
            media.path(name, "row")
