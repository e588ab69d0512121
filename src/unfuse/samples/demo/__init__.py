"""The built-in demo: simulated recordings with questions and answers, and a small EventGPT trained to answer them.

The checkpoint is part of the package, in the published format; its folder has a model card. Recordings are simulated at
first use, offline.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from unfuse.atomic_files import complete_file, make_folder
from unfuse.errors import DatasetError, FileAccessError
from unfuse.samples.dataset import MANIFEST_NAME, Dataset, read_dataset
from unfuse.samples.demo.dialogue import describe
from unfuse.samples.demo.folder import DemoRow, manifest_of, write_events
from unfuse.samples.demo.scenes import demo_scene
from unfuse.samples.sample import Sample
from unfuse.user_cache import cache_home

_VERSION: Final = "4"
"""Part of the folder's name; raised whenever the simulated recordings change."""

MAX_NEW_TOKENS: Final = 64

_SEEDS: Final = (40_000_000, 40_000_005, 40_000_002, 40_000_023, 40_000_009, 40_000_020, 40_000_059, 40_000_008)
"""Seeds of scenes with different movers, motions and camera motions; none is in the training set."""


def demo_dataset(max_samples: int | None = None) -> Dataset:
    """Return the demo recordings in the instruction-set layout, simulated at first use."""
    return read_dataset(_cached("recordings", _build_recordings), max_samples=max_samples)


def demo_sample(name: str) -> Sample:
    """Return the recording ``demo:N``.

    Raises:
        DatasetError: there is no such recording.
    """
    for sample in demo_dataset().samples:
        if sample.sample_id == name:
            return sample
    raise DatasetError(f"recording {name!r}", found="no such demo", expected=f"demo:0 to demo:{len(_SEEDS) - 1}")


def demo_checkpoint() -> Path:
    """Return the demo model's folder, in the published checkpoint format."""
    return Path(__file__).with_name("model") / "EventGPT-demo"


def tokenizer_model() -> bytes:
    """Return the demo model's sentencepiece file."""
    return (demo_checkpoint() / "tokenizer.model").read_bytes()


def _cached(part: str, build: Callable[[Path], None]) -> Path:
    """Return the cached folder of one part; a temporary folder is built and renamed, so that it is always complete."""
    home = cache_home()
    folder = home / f"demo-{part}-{_VERSION}"
    if folder.is_dir():
        return folder
    try:
        make_folder(home)
        partial = Path(tempfile.mkdtemp(dir=home, prefix=f".demo-{part}-"))
    except OSError as error:
        raise FileAccessError(
            str(home),
            found=error.strerror,
            expected="a writable cache folder",
            fix="set UNFUSE_CACHE to a writable folder",
        ) from None
    try:
        build(partial)
        # Another process may have been faster; its result is equal.
        with contextlib.suppress(OSError):
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _build_recordings(folder: Path) -> None:
    rows = [
        DemoRow(f"demo:{index}", f"demo/{index:06d}", seed, "", describe(demo_scene(seed)[1]))
        for index, seed in enumerate(_SEEDS)
    ]
    for row in rows:
        write_events(folder, row)
    with complete_file(folder / MANIFEST_NAME) as partial:
        partial.write_text(manifest_of(rows), encoding="utf-8")
