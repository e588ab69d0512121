"""The kind of an upload, by its first bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfuse.errors import MediaError
from unfuse.serving.kinds import LOADERS, kind_of, sample_of


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n", "image"),
        (b"\xff\xd8\xff\xe0", "image"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image"),
        (b"RIFF\0\0\0\0AVI LIST", "video"),
        (b"\0\0\0\x20ftypisom", "video"),
        (b"\x1aE\xdf\xa3", "video"),
        (b"\x93NUMPY", "events"),
        (b"#EXTM3U", "events"),
        (b"%!PS-Adobe", "events"),
        (b"", "events"),
    ],
)
def test_first_bytes_say_what_it_is(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind


def test_files_of_one_scene(tmp_path: Path) -> None:
    paths = [tmp_path / str(i) for i in range(40)]
    assert sample_of(paths[:5], "image", "events").event_image == tuple(paths[:5])
    assert sample_of(paths[:1], "image", "video").image == paths[0]
    assert sample_of(paths[:1], "events", "image").event_data == paths[0]
    assert sample_of(paths[:1], "video", "image").video == paths[0]
    wrong = [(33, "image", "events"), (2, "image", "video"), (2, "events", "events"), (1, "video", "events")]
    for count, kind, takes in wrong:
        with pytest.raises(MediaError):
            sample_of(paths[:count], kind, takes)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["random:llava-tiny", "random:video-llava-tiny"])
def test_readers_load_as_the_adapters_do(name: str, recording: Path) -> None:
    """Stage 1 in the reader's process is the adapter's; EventGPT's is in test_sandbox_client."""
    import unfuse
    from unfuse.samples import Sample

    with unfuse.load(name, device="cpu") as model:
        sample = Sample.from_events(recording)
        ours, theirs = LOADERS[model.adapter.takes](sample), model.load(sample)
    assert ours.media_sha256 == theirs.media_sha256
    assert ours.notes == theirs.notes
    assert len(ours.frames) == len(theirs.frames) == (8 if "video" in name else 1)
    assert all((a == b).all() for a, b in zip(ours.frames, theirs.frames, strict=True))
