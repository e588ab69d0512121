"""Small pictures of the models' input, for the report; made when all measuring is over."""

from __future__ import annotations

from collections.abc import Iterable

from unfuse.errors import InputError
from unfuse.records import SampleRecord
from unfuse.records.frames import FrameStore
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel


def store_frames(model: StagedModel, dataset: Dataset, records: Iterable[SampleRecord], store: FrameStore) -> None:
    """Store a strip of frames of every medium that the records name and the store does not hold.

    Frames are loaded once more, because frames held since a measured run would disturb the next run. A medium that has
    changed or disappeared since is left out.

    Raises:
        RunFolderError: a strip cannot be written.
    """
    measured = (r for r in records if r.status == "ok" and not r.warmup and r.num_frames)
    shown = {record.sample_id: record.media_sha256 for record in measured}
    for sample in dataset.samples:
        media = shown.get(sample.sample_id)
        if media is None or store.holds(media):
            continue
        if store.full:
            return
        try:
            loaded = model.load(sample)
        except (InputError, OSError):
            continue
        if loaded.media_sha256 == media:
            store.write(media, loaded.frames)
