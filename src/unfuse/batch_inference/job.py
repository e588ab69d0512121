"""A run over a dataset: its questions, the devices that answer them, and the folder that records the answers."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.device import DeviceFacts, DeviceJob, DeviceResult, DeviceRunner
from unfuse.batch_inference.devices import DeviceProcesses
from unfuse.batch_inference.flow import ENCODE_TOGETHER, FlowSettings
from unfuse.batch_inference.pool import NextScene
from unfuse.batch_inference.scenes import SceneQuestions, questions_of, scenes_of
from unfuse.batch_inference.store import StoreConfig
from unfuse.batch_inference.summary import RunSummary
from unfuse.batch_inference.times import sum_times
from unfuse.batch_inference.workers import SCENE_SECONDS
from unfuse.benchmarking.manifest import own_command
from unfuse.errors import DatasetError, FileAccessError, InputError
from unfuse.feature_store import FeatureStore
from unfuse.loading import Placement, open_preprocessor
from unfuse.records import Manifest
from unfuse.records.answers_file import ANSWERS_FILE, AnswerRecord, read_answers
from unfuse.records.answers_folder import AnswersFolder
from unfuse.records.inputs import RecordedInput, first_changed_input
from unfuse.records.schema import ANSWERS_PROTOCOL
from unfuse.samples import Dataset, Question, Sample
from unfuse.samples.inputs import present_inputs
from unfuse.staged_model import StagedModel
from unfuse.stages import Generation, Sampling

if TYPE_CHECKING:
    from unfuse.batch_inference.cluster.settings import RaySettings

_DAY_S: Final = 86_400
_GENERATION_FIELDS: Final = (
    "text", "token_ids", "stop_reason", "prompt_tokens", "output_tokens", "reused_prefix_tokens",
)  # fmt: skip
OnReady = Callable[[DeviceFacts, int], None]
OnAnswer = Callable[[AnswerRecord], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """Settings of a run."""

    max_new_tokens: int = 512
    output_length: int | None = None
    """Exact number of new tokens of every answer."""
    temperature: float = 0.0
    seed: int = 0
    workers: int | None = None
    """Processes that load and preprocess, for each device; 0 uses a thread of this process. Default: by the device."""
    capacity: int | None = None
    """Questions answered at the same time, on each device. Default: the engine's own."""
    encode_batch: int = ENCODE_TOGETHER
    """Scenes encoded together."""
    scene_seconds: float | None = None
    """Time limit of a worker process for one scene; the scene then fails. 600 by default."""
    store: FeatureStore | str | Path | None = None
    """Store of encoded scenes, read and written."""
    sampling: Sampling = field(init=False)

    def __post_init__(self) -> None:
        minimum_one = {
            "max-new-tokens": self.max_new_tokens, "encode-batch": self.encode_batch,
            "output-length": self.output_length, "capacity": self.capacity,
        }  # fmt: skip
        for name, value in minimum_one.items():
            if value is not None and value < 1:
                raise InputError(name, found=value, expected="at least 1")
        if self.scene_seconds is not None and not 1 <= self.scene_seconds <= _DAY_S:
            raise InputError("scene-seconds", found=self.scene_seconds, expected=f"1 to {_DAY_S}")
        if self.workers is not None and self.workers < 0:
            raise InputError("workers", found=self.workers, expected="at least 0")
        sampling = Sampling(temperature=self.temperature, seed=self.seed, ignore_eos=self.output_length is not None)
        object.__setattr__(self, "sampling", sampling)

    @property
    def flow(self) -> FlowSettings:
        """The settings of each device."""
        return FlowSettings(
            max_new_tokens=self.output_length or self.max_new_tokens,
            sampling=self.sampling,
            capacity=self.capacity,
            encode_together=self.encode_batch,
        )

    @property
    def store_config(self) -> StoreConfig | None:
        """The store, as devices and workers open it.

        Raises:
            FileAccessError: it cannot be created.
            InputError: the folder holds something else.
        """
        if self.store is None:
            return None
        store = self.store if isinstance(self.store, FeatureStore) else FeatureStore(self.store)
        return StoreConfig(path=store.path.absolute(), max_bytes=store.max_bytes)

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the answers; the others decide the speed."""
        names = ("max_new_tokens", "output_length", "temperature", "seed")
        return {name: getattr(self, name) for name in names}


class Work:
    """The questions of a run, checked; no media are loaded."""

    def __init__(self, dataset: Dataset, questions: Sequence[str] | None = None):
        """Read no media.

        Args:
            dataset: the samples.
            questions: asked of every sample instead of its own question.

        Raises:
            InputError: a question with special tokens, a duplicate ID, or a missing file.
        """
        self.dataset = dataset
        self.notes = dataset.notes if questions is None else ()
        """Decisions about the questions of the rows."""
        if questions is not None and not questions:
            raise InputError("questions", found="none", expected="at least one")
        self.rows: list[tuple[Sample, Question]] = list(questions_of(dataset.samples, questions))
        ids = {question.question_id for _, question in self.rows}
        if len(ids) != len(self.rows):
            raise DatasetError(dataset.name, found="a sample id twice", expected="each once")
        sizes: dict[Path, int] = {}
        digest = hashlib.sha256()
        self.media_bytes: dict[str, int] = {}
        """Size of each question's media files, by question ID."""
        for sample, rows in groupby(self.rows, key=itemgetter(0)):
            files = sample.files
            sizes.update((path, _size(path, dataset)) for path in files if path not in sizes)
            names, num_bytes = [path.name for path in files], sum(sizes[path] for path in files)
            for _, question in rows:
                digest.update(json.dumps([question.question_id, question.text, names]).encode())
                self.media_bytes[question.question_id] = num_bytes
        self.sha256 = digest.hexdigest()
        """Hash of IDs, questions and file names; each answer records the hash of its file contents."""

    def scenes(self, done: Iterable[str] = ()) -> list[SceneQuestions]:
        """Return the scenes with questions that are not in ``done``."""
        answered = frozenset(done)
        return scenes_of((sample, question) for sample, question in self.rows if question.question_id not in answered)


def _size(path: Path, dataset: Dataset) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise FileAccessError(str(path), found=found, expected=f"what {dataset.name} names") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class RunJob:
    """A dataset to answer, with checked input."""

    model: str | StagedModel
    """A name, or a loaded model."""
    work: Work
    settings: RunSettings
    output: Path
    """Run folder, written while the run goes on."""
    resume: bool = False
    """Continue the run in ``output`` and try its failed samples again."""
    placement: Placement = field(default_factory=Placement)
    devices: tuple[str, ...] = ()
    """One process for each; empty if ``placement`` names the device. Needs a model's name."""
    ray: RaySettings | None = None
    """Cluster that loads the model itself. Needs a model's name."""

    @property
    def model_name(self) -> str:
        """Name of the model, loaded or not."""
        return self.model.name if isinstance(self.model, StagedModel) else self.model

    @property
    def device_job(self) -> DeviceJob:
        """The part of one device."""
        scene_seconds = self.settings.scene_seconds
        return DeviceJob(
            model=self.model_name,
            device=self.placement.device,
            dtype=self.placement.dtype,
            engine=self.placement.engine,
            flow=self.settings.flow,
            workers=self.settings.workers,
            scene_seconds=SCENE_SECONDS if scene_seconds is None else scene_seconds,
            store=self.settings.store_config,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswersRun:
    """A finished run."""

    folder: Path
    result: RunSummary

    def summary(self) -> RunSummary:
        """Return counts, rates and times."""
        return self.result

    def answers(self) -> Iterator[AnswerRecord]:
        """Yield every answer, read from the folder, in the order of their ends.

        Raises:
            RunFolderError: the file is damaged.
        """
        return read_answers(self.folder / ANSWERS_FILE)


def answer_dataset(job: RunJob, *, on_ready: OnReady | None = None, on_answer: OnAnswer | None = None) -> AnswersRun:
    """Answer every question of a dataset exactly once.

    Args:
        job: model, questions and settings.
        on_ready: called with facts of the device and the number of questions, once the model is loaded.
        on_answer: called with every answer once it is on disk, by another thread.

    Raises:
        RunFolderError: the folder is occupied, or belongs to another run.
        UnfuseError: the model or the workers do not start.
    """
    recorder = _Recorder(job, on_ready, on_answer)
    device_job = job.device_job
    loaded = job.model if isinstance(job.model, StagedModel) else None
    if job.ray is not None:
        if loaded is not None:
            raise InputError("ray", found="a loaded model", expected="a model's name: each actor loads it")
        from unfuse.batch_inference.cluster.pipeline import RayPipeline

        with RayPipeline(device_job, job.ray) as pipeline:
            return recorder.run(pipeline)
    if job.devices:
        if loaded is not None:
            raise InputError("devices", found="a loaded model", expected="a model's name: each process loads it")
        with DeviceProcesses(device_job, job.devices) as processes:
            return recorder.run(processes)
    with DeviceRunner(device_job, loaded) as runner:
        return recorder.run(_OneDevice(runner))


class _Devices(Protocol):
    """The devices of a run: one in this process, several in their own processes, or a cluster."""

    @property
    def deaths(self) -> tuple[str, ...]:
        """Sentences about devices that were lost."""

    @property
    def facts(self) -> DeviceFacts:
        """Facts of one device; the number of workers is the sum of all."""

    def answer(self, scenes: list[SceneQuestions], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        """Answer all scenes."""


class _OneDevice:
    """A device in this process."""

    deaths: tuple[str, ...] = ()

    def __init__(self, runner: DeviceRunner):
        self._runner = runner
        self.facts = runner.facts

    def answer(self, scenes: list[SceneQuestions], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        return [self._runner.answer(scene_source(scenes), emit)]


class _Recorder:
    """Writes the run folder, whichever devices answer."""

    def __init__(self, job: RunJob, on_ready: OnReady | None, on_answer: OnAnswer | None):
        self._job = job
        self._on_ready = on_ready
        self._on_answer = on_answer
        self._answered = 0
        self._failed = 0
        self._tokens = 0

    def run(self, devices: _Devices) -> AnswersRun:
        """Have all open questions answered, and record the answers."""
        job, facts = self._job, devices.facts
        resume = partial(AnswersFolder.resume, changed_input=partial(_changed_input, job, facts))
        start = resume if job.resume else AnswersFolder.create
        with start(job.output, _manifest(facts, job), self._on_answer) as folder:
            scenes = job.work.scenes(folder.done)
            if self._on_ready is not None:
                self._on_ready(facts, len(job.work.rows) - len(folder.done))
            start_s = time.perf_counter()
            results = devices.answer(scenes, partial(self._append, folder))
            folder.finish()
            times = sum_times([result.times for result in results], time.perf_counter() - start_s, folder.busy_s)
            summary = RunSummary(
                samples=len(job.work.rows),
                ok=self._answered - self._failed + len(folder.done),
                failed=self._failed,
                earlier=len(folder.done),
                retried=len(folder.failed),
                output_tokens=self._tokens,
                times=times,
                scenes=len(scenes),
                capacity=facts.capacity,
                most_held=max((each.most_held for each in results if each.most_held is not None), default=None),
                scenes_found=sum(result.scenes_found for result in results),
                not_kept=next((result.not_kept for result in results if result.not_kept), None),
                worker_deaths=sum(result.worker_deaths for result in results),
                device_deaths=devices.deaths,
                pools=tuple(use for result in results for use in result.pools),
            )
            if summary.answered or not folder.ended:  # an earlier process's rates stay if this process answered nothing
                folder.write_summary(summary.to_dict())
        return AnswersRun(folder=folder.path, result=summary)

    def _append(self, folder: AnswersFolder, answer: Answer) -> None:
        self._answered += 1
        if isinstance(answer.generation, Generation):
            self._tokens += answer.generation.output_tokens
        else:
            self._failed += 1
        folder.append(_record(answer, self._job.work.media_bytes[answer.question.question_id]))


def _changed_input(job: RunJob, facts: DeviceFacts, recorded: Mapping[str, RecordedInput]) -> str | None:
    if not recorded:
        return None
    if isinstance(job.model, StagedModel):
        preprocessor = job.model.adapter.preprocessor
    else:
        preprocessor = open_preprocessor(job.model, facts.model["dtype"])
    return first_changed_input(recorded, present_inputs(job.work.rows, preprocessor.media_sha256))


def scene_source(scenes: Iterable[SceneQuestions]) -> NextScene:
    """Return a call that gives each scene to one of several threads."""
    left, lock = iter(scenes), threading.Lock()

    def next_scene() -> SceneQuestions | None:
        with lock:
            return next(left, None)

    return next_scene


def _record(answer: Answer, media_bytes: int) -> AnswerRecord:
    generation: dict[str, Any] = {}
    if isinstance(answer.generation, Generation):
        generation = {name: getattr(answer.generation, name) for name in _GENERATION_FIELDS}
        generation["features_kept"] = answer.features_cached
    return AnswerRecord(
        sample_id=answer.question.question_id,
        status="ok" if answer.error is None else "failed",
        error=answer.error,
        question=answer.question.text,
        media_sha256=answer.media_sha256 or None,
        media_bytes=media_bytes,
        finished_unix_s=time.time(),
        **generation,
    )


def _manifest(facts: DeviceFacts, job: RunJob) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        run_id=f"{now:%Y%m%dT%H%M%S}-{Path(job.model_name).name.replace(':', '-')}-answers",
        created=now.isoformat(timespec="seconds"),
        command=own_command(),
        protocol=ANSWERS_PROTOCOL,
        config=job.settings.identity(),
        model={**facts.model, "device": facts.model["device"].partition(":")[0]},
        dataset={"path": job.work.dataset.name, "sha256": job.work.sha256, "num_samples": len(job.work.rows)},
        environment=facts.environment,
    )
