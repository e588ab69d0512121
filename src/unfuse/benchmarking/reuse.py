"""Find results that a model reuses between runs: a repeat of a sample must cost as much as new media.

After the samples, a measured sample runs again, and so do variants of equal shape: files with other bytes, one other
square, and other values of every pixel. A model that keeps frames, pixels, features or answers does less for the
repeat, and a model that keeps them under a key of too little gives a variant the results of the sample.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from unfuse.benchmarking.setup import BenchSetup
from unfuse.errors import UnfuseError
from unfuse.measure.clock import StageClock, paused_gc
from unfuse.measure.effort import EffortClock, counted
from unfuse.pipeline import Run
from unfuse.records.schema import FUSED_STAGE
from unfuse.records.work_records import Effort, Reuse, StageReuse
from unfuse.report.statistics import order_interval
from unfuse.samples import Sample
from unfuse.samples.variants import SampleFiles, equal_frames, is_rewritable, used_media, with_frames, with_square
from unfuse.stages import Loaded

_TOKENS: Final = 2
ROUNDS: Final = 2
_MASKS: Final = (0xFF, 0x55, 0xAA, 0x33, 0xCC, 0x0F, 0xF0, 0x66, 0x99)
"""Values that pixels are combined with by exclusive or: no two variants have an equal pixel."""
PAIRS: Final = 7
"""Timed pairs of a variant and the repeat: all must agree."""
_LEAST_SHARE: Final = 0.98
"""Share of the work on new media that a repeat has at least."""
_LEAST_TIME: Final = 0.8
_TIMED: Final = frozenset({"encode", "prefill", "decode", FUSED_STAGE})
"""Stages whose work may run outside of torch. ``preprocess`` finds frames in a cache or not, so its time says less."""
_SHORTEST_MS: Final = 0.2
"""A shorter stage has no time that tells."""
_UNITS: Final = {
    "operators": "operators of torch", "elements": "elements of results", "calls": "calls of functions",
    "read_bytes": "bytes",
}  # fmt: skip


def reuse_of(setup: BenchSetup, sample: Sample) -> Reuse:
    """Compare the work of a measured sample with that of new media, stage by stage.

    Args:
        setup: with a warm model; neither drafts nor the end of an answer change its work here.
        sample: one that was measured.
    """
    setup = replace(setup, settings=replace(setup.settings, output_length=_TOKENS), drafters=None)
    try:
        loaded = setup.model.load(sample)
        if not loaded.frames:
            return Reuse(sample_id=sample.sample_id, reason="the sample has no media")
        with tempfile.TemporaryDirectory(prefix="unfuse-reuse-") as folder, paused_gc():
            return _Comparison(setup, sample, loaded, SampleFiles(Path(folder))).result()
    except (UnfuseError, RuntimeError) as error:
        finding = f"media of equal shape and other content fail: {' '.join(str(error).split())}"
        return Reuse(sample_id=sample.sample_id, findings=(finding,))
    except OSError as error:
        return Reuse(sample_id=sample.sample_id, reason=f"no files for variants of the sample: {error.strerror}")


@dataclass(slots=True)
class _Comparison:
    """Runs of one sample and of its variants."""

    setup: BenchSetup
    sample: Sample
    loaded: Loaded
    files: SampleFiles
    fresh: dict[str, list[Effort]] = field(default_factory=dict)
    changed: dict[str, list[Effort]] = field(default_factory=dict)
    """Of one changed square."""
    again: dict[str, list[Effort]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)

    def result(self) -> Reuse:
        """Run everything, and judge."""
        # Counting makes some calls of its own at first, and a cache may have the length of an answer in its key.
        self.setup.run_staged(self.sample, EffortClock())
        for index in range(ROUNDS):
            self._load(index)
            other = self._count(self._other(index), self.fresh)
            self._count(self._square(index), self.changed)
            self._compare(other, self._count(self.sample, self.again))
        ratios = self._time_ratios()
        stages = {
            stage: StageReuse(
                new=_least(self.fresh[stage]), again=_most(efforts), time_ratio=_median(ratios.get(stage))
            )
            for stage, efforts in self.again.items()
        }
        findings = [*self.stale, *self._less(), *_faster(ratios)]
        return Reuse(sample_id=self.sample.sample_id, stages=stages, findings=tuple(dict.fromkeys(findings)))

    def _load(self, index: int) -> None:
        """Count loading of new files and of the sample's own. Hashing is left out: new files are always hashed."""
        if not self.sample.files:
            return
        used = used_media(self.sample, self.loaded.media)
        new = self.files.marked(used, index)
        for sample, efforts in ((new, self.fresh), (self.sample, self.again)):
            # Loading comes first: a cache of bytes takes them from the hash, and the file is not read for frames.
            with counted() as loading:
                frames = self.setup.model.load(sample).frames
            with counted() as hashing:
                self.setup.model.media_sha256(sample)
            if sample is new and is_rewritable(used) and equal_frames(frames, self.loaded.frames):
                self.stale.append("load gives other events the frames of a measured sample")
            efforts.setdefault("load", []).append(_without(loading[0], hashing[0]))

    def _count(self, sample: Sample, efforts: dict[str, list[Effort]]) -> Run:
        clock = EffortClock()
        run = self.setup.run_staged(sample, clock)
        for stage, effort in clock.stages.items():
            if stage != "load" and not (stage == "prefill" and self.setup.settings.reuse):
                efforts.setdefault(stage, []).append(effort)
        return run

    def _compare(self, other: Run, own: Run) -> None:
        """Note the results that two scenes have in common."""
        import torch

        if torch.equal(other.prepared.pixel_values, own.prepared.pixel_values):
            self.stale.append("preprocess gives other media the pixels of a measured sample")
        features = [run.features.tensor for run in (other, own) if run.features is not None]
        if len(features) == 2 and torch.equal(*features):
            self.stale.append("encode gives other media the features of a measured sample")

    def _less(self) -> Iterator[str]:
        """Yield the stages in which a repeat, or one changed square, had less work than new media."""
        for efforts, name in ((self.again, "a measured sample"), (self.changed, "one other square")):
            for stage, found in efforts.items():
                for unit, text in _UNITS.items():
                    new, most = _values(self.fresh[stage], unit), _values(found, unit)
                    if new and most and max(most) < _LEAST_SHARE * min(new):
                        yield f"{stage} of {name} has {max(most)} of the {min(new)} {text} of new media"
                        break

    def _time_ratios(self) -> Mapping[str, Sequence[float]]:
        """Return the time of the repeat over that of new media, by stage."""
        ratios: dict[str, list[float]] = {}
        for index in range(PAIRS):
            new, again = StageClock(self.setup.timer), StageClock(self.setup.timer)
            pair = [(self._other(ROUNDS + index), new), (self.sample, again)]
            for sample, clock in pair if index % 2 else reversed(pair):
                self.setup.run_staged(sample, clock)
            for stage in _TIMED & self.again.keys():
                if new.stages[stage].host_ms >= _SHORTEST_MS:
                    ratio = again.stages[stage].host_ms / new.stages[stage].host_ms
                    ratios.setdefault(stage, []).append(ratio)
        return ratios

    def _other(self, index: int) -> Sample:
        return with_frames(self.sample, [frame ^ np.uint8(_MASKS[index]) for frame in self.loaded.frames])

    def _square(self, index: int) -> Sample:
        frames = self.loaded.frames
        return with_frames(self.sample, with_square(frames, len(frames) - 1, seed=1000 + index))


def _faster(ratios: Mapping[str, Sequence[float]]) -> Iterator[str]:
    for stage, values in ratios.items():
        if len(values) == PAIRS and order_interval(np.array(values))[1] < _LEAST_TIME:
            yield f"{stage} of a measured sample takes {np.median(values):.0%} of the time of new media"


def _values(efforts: Sequence[Effort], unit: str) -> list[int]:
    return [value for effort in efforts if (value := getattr(effort, unit)) is not None]


def _least(efforts: Sequence[Effort]) -> Effort:
    return Effort(**{unit: min(_values(efforts, unit), default=None) for unit in _UNITS})


def _most(efforts: Sequence[Effort]) -> Effort:
    return Effort(**{unit: max(_values(efforts, unit), default=None) for unit in _UNITS})


def _median(values: Sequence[float] | None) -> float | None:
    return float(np.median(values)) if values else None


def _without(loading: Effort, hashing: Effort) -> Effort:
    """Return the work of ``load`` without its two hashes of the files, before and after."""

    def rest(unit: str) -> int | None:
        whole, part = getattr(loading, unit), getattr(hashing, unit)
        return None if whole is None or part is None else max(whole - 2 * part, 0)

    return Effort(**{unit: rest(unit) for unit in _UNITS})
