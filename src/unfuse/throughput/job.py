"""A whole dataset to answers: what is to be answered, who answers it, and the one place where answers are filed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from unfuse.errors import DatasetError, FileAccessError, InputError
from unfuse.feature_store import FeatureStore
from unfuse.loading import Placement
from unfuse.protocols.bench import own_command
from unfuse.runs import Manifest
from unfuse.runs.answers_file import ANSWERS_FILE, AnswerRecord, read_answers
from unfuse.runs.answers_folder import AnswersFolder
from unfuse.runs.schema import ANSWERS_PROTOCOL
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling
from unfuse.throughput.device import DeviceFacts, DeviceJob, DeviceResult, DeviceRunner
from unfuse.throughput.devices import DeviceProcesses
from unfuse.throughput.flow import ENCODE_TOGETHER, Answer, FlowSettings
from unfuse.throughput.kept import StorePlace
from unfuse.throughput.pool import NextScene
from unfuse.throughput.scenes import Asked, Scene, questions_of, scenes_of
from unfuse.throughput.summary import RunSummary
from unfuse.throughput.times import together
from unfuse.throughput.workers import SCENE_SECONDS

if TYPE_CHECKING:
    from unfuse.throughput.cluster.settings import RaySettings

_DAY_S: Final = 86_400
OnAnswer = Callable[[AnswerRecord], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """How a dataset is answered."""

    max_new_tokens: int = 512
    output_length: int | None = None
    """Exactly so many new tokens for every question."""
    temperature: float = 0.0
    seed: int = 0
    workers: int | None = None
    """Processes that load and preprocess, for each device; 0 takes a thread of this process. Default: by the device."""
    capacity: int | None = None
    """Questions answered at the same time, on each device. Default: the engine's own."""
    encode_batch: int = ENCODE_TOGETHER
    """Scenes encoded together."""
    scene_seconds: float | None = None
    """A worker process that takes longer over one scene is ended, and the scene has failed; by default 600."""
    store: FeatureStore | str | Path | None = None
    """Where encoded scenes are kept and looked for."""

    def __post_init__(self) -> None:
        least = {"max-new-tokens": self.max_new_tokens, "encode-batch": self.encode_batch}
        least |= {"output-length": self.output_length, "capacity": self.capacity}  # type: ignore[dict-item]
        for name, value in least.items():
            if value is not None and value < 1:
                raise InputError(name, found=value, expected="at least 1")
        if self.scene_seconds is not None and not 1 <= self.scene_seconds <= _DAY_S:
            raise InputError("scene-seconds", found=self.scene_seconds, expected=f"1 to {_DAY_S}")
        if self.workers is not None and self.workers < 0:
            raise InputError("workers", found=self.workers, expected="at least 0")
        _ = self.flow

    @property
    def flow(self) -> FlowSettings:
        """The part that each device is told."""
        sampling = Sampling(temperature=self.temperature, seed=self.seed, ignore_eos=self.output_length is not None)
        return FlowSettings(
            max_new_tokens=self.output_length or self.max_new_tokens,
            sampling=sampling,
            capacity=self.capacity,
            encode_together=self.encode_batch,
        )

    @property
    def place(self) -> StorePlace | None:
        """The store, as devices and workers are told of it.

        Raises:
            FileAccessError: it cannot be made.
            InputError: the folder holds something else.
        """
        if self.store is None:
            return None
        store = self.store if isinstance(self.store, FeatureStore) else FeatureStore(self.store)
        return StorePlace(path=store.path.absolute(), max_bytes=store.max_bytes)

    def identity(self) -> dict[str, Any]:
        """What decides the answers; the rest decides when they come."""
        names = ("max_new_tokens", "output_length", "temperature", "seed")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswersRun:
    """A run that has ended."""

    folder: Path
    result: RunSummary

    def summary(self) -> RunSummary:
        """Counts, rates, where the time went."""
        return self.result

    def answers(self) -> Iterator[AnswerRecord]:
        """Every answer, read from the folder one at a time, in the order in which they ended.

        Raises:
            RunFolderError: the file is damaged.
        """
        return read_answers(self.folder / ANSWERS_FILE)


class Work:
    """What is to be answered: understood and checked, nothing loaded."""

    def __init__(self, dataset: Dataset, questions: Sequence[str] | None = None):
        """Reads no media.

        Args:
            dataset: the rows.
            questions: asked of every row in the place of its own.

        Raises:
            InputError: a question that cannot be asked, an id twice, or a file that is not there.
        """
        self.dataset = dataset
        if questions is not None and not questions:
            raise InputError("questions", found="none", expected="at least one")
        self.rows: list[tuple[Sample, Asked]] = list(questions_of(dataset.samples, questions))
        ids = {asked.sample_id for _, asked in self.rows}
        if len(ids) != len(self.rows):
            raise DatasetError(dataset.name, found="a sample id twice", expected="each once")
        files = {
            sample.sample_id: [(path.name, _size(path, dataset)) for path in sample.files] for sample in dataset.samples
        }
        digest = hashlib.sha256()
        self.media_bytes: dict[str, int] = {}
        """Size of the files that each question is about."""
        for sample, asked in self.rows:
            names = [name for name, _ in files[sample.sample_id]]
            digest.update(json.dumps([asked.sample_id, asked.question, names]).encode())
            self.media_bytes[asked.sample_id] = sum(size for _, size in files[sample.sample_id])
        self.sha256 = digest.hexdigest()
        """Of ids, questions, and the names of their files; what is in these, each answer says by its hash."""

    def scenes(self, done: Iterable[str] = ()) -> list[Scene]:
        """What is left."""
        known = frozenset(done)
        return scenes_of((sample, asked) for sample, asked in self.rows if asked.sample_id not in known)


def _size(path: Path, dataset: Dataset) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise FileAccessError(str(path), found=found, expected=f"what {dataset.name} names") from None


def answer_dataset(
    model: str | StagedModel,
    work: Work,
    settings: RunSettings,
    *,
    output: Path,
    resume: bool = False,
    placement: Placement | None = None,
    devices: tuple[str, ...] = (),
    ray: RaySettings | None = None,
    command: tuple[str, ...] | None = None,
    on_ready: Callable[[DeviceFacts, int], None] | None = None,
    on_answer: OnAnswer | None = None,
) -> AnswersRun:
    """Answers every question of a dataset, each exactly once.

    Args:
        model: a name, or a loaded model.
        work: what is to be answered.
        settings: options.
        output: run folder, written as the run goes on.
        resume: continue the run in ``output``; what failed there is tried again.
        placement: where the model is loaded; automatic by default.
        devices: in the place of that device, a process each, started again when it dies; then ``model`` is a name.
        ray: on a cluster, which loads the model itself.
        command: for the record; the process's own by default.
        on_ready: called with what is known of the device, and how many questions are left.
        on_answer: called with every answer once it is on the disk, by another thread.

    Raises:
        RunFolderError: the folder is taken, or belongs to another run.
        UnfuseError: the model or the workers do not start.
    """
    where = placement or Placement()
    name = model if isinstance(model, str) else model.name
    job = DeviceJob(
        model=name,
        device=where.device,
        dtype=where.dtype,
        engine=where.engine,
        flow=settings.flow,
        workers=settings.workers,
        scene_seconds=SCENE_SECONDS if settings.scene_seconds is None else settings.scene_seconds,
        store=settings.place,
    )
    filing = _Filing(name, work, settings, output, resume, command or own_command(), on_ready, on_answer)
    if ray is not None:
        if not isinstance(model, str):
            raise InputError("ray", found="a loaded model", expected="a model's name: each actor loads it")
        from unfuse.throughput.cluster.pipeline import RayPipeline

        with RayPipeline(job, ray) as pipeline:
            return filing.of(pipeline)
    if devices:
        if not isinstance(model, str):
            raise InputError("devices", found="a loaded model", expected="a model's name: each process loads it")
        with DeviceProcesses(job, devices) as processes:
            return filing.of(processes)
    with DeviceRunner(job, None if isinstance(model, str) else model) as runner:
        return filing.of(_OneDevice(runner))


class _Devices(Protocol):
    """What answers: one device here, several in processes of their own, or a cluster."""

    @property
    def deaths(self) -> tuple[str, ...]:
        """Devices that were lost, a sentence each."""

    @property
    def facts(self) -> DeviceFacts:
        """Of one of them, workers of all together."""

    def answer(self, scenes: list[Scene], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        """Answers all scenes."""


class _OneDevice:
    """A device in this process."""

    deaths: tuple[str, ...] = ()

    def __init__(self, runner: DeviceRunner):
        self._runner = runner
        self.facts = runner.facts

    def answer(self, scenes: list[Scene], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        return [self._runner.answer(shared(scenes), emit)]


@dataclass(slots=True)
class _Filing:
    """The one place where answers are filed, whoever gives them."""

    name: str
    work: Work
    settings: RunSettings
    output: Path
    resume: bool
    command: tuple[str, ...]
    on_ready: Callable[[DeviceFacts, int], None] | None
    on_answer: OnAnswer | None
    _answered: int = 0
    _failed: int = 0
    _tokens: int = 0

    def of(self, devices: _Devices) -> AnswersRun:
        """Has all that is left answered, and files it."""
        facts = devices.facts
        manifest = _manifest(facts, self.name, self.work, self.settings, self.command)
        resume = partial(AnswersFolder.resume, media_bytes=self.work.media_bytes)
        start = resume if self.resume else AnswersFolder.create
        with start(self.output, manifest, self.on_answer) as folder:
            scenes = self.work.scenes(folder.done)
            if self.on_ready is not None:
                self.on_ready(facts, len(self.work.rows) - len(folder.done))
            begun = time.perf_counter()
            results = devices.answer(scenes, partial(self._file, folder))
            folder.settle()
            times = together([result.times for result in results], time.perf_counter() - begun, folder.busy_s)
            summary = RunSummary(
                samples=len(self.work.rows),
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
            if summary.answered or not folder.ended:  # rates of the process that did something stay
                folder.write_summary(summary.to_dict())
        return AnswersRun(folder=folder.path, result=summary)

    def _file(self, folder: AnswersFolder, answer: Answer) -> None:
        self._answered += 1
        self._tokens += len(answer.token_ids)
        self._failed += answer.error is not None
        folder.append(replace(_record(answer), media_bytes=self.work.media_bytes[answer.asked.sample_id]))


def shared(scenes: Iterable[Scene]) -> NextScene:
    """One scene after the other, to whichever thread asks."""
    left, lock = iter(scenes), threading.Lock()

    def following() -> Scene | None:
        with lock:
            return next(left, None)

    return following


def _record(answer: Answer) -> AnswerRecord:
    begun = AnswerRecord(
        sample_id=answer.asked.sample_id,
        status="ok" if answer.error is None else "failed",
        error=answer.error,
        question=answer.asked.question,
        media_sha256=answer.media_sha256 or None,
        finished_unix_s=time.time(),
    )
    if answer.error is not None:
        return begun
    return replace(
        begun,
        text=answer.text,
        token_ids=answer.token_ids,
        stop_reason=answer.stop_reason,
        prompt_tokens=answer.prompt_tokens,
        output_tokens=len(answer.token_ids),
        reused_prefix_tokens=answer.reused_prefix_tokens,
        features_kept=answer.features_kept,
    )


def _manifest(facts: DeviceFacts, name: str, work: Work, settings: RunSettings, command: tuple[str, ...]) -> Manifest:
    now = datetime.now(UTC)
    return Manifest(
        run_id=f"{now:%Y%m%dT%H%M%S}-{Path(name).name.replace(':', '-')}-answers",
        created=now.isoformat(timespec="seconds"),
        command=command,
        protocol=ANSWERS_PROTOCOL,
        config=settings.identity(),
        model={**facts.model, "device": facts.model["device"].partition(":")[0]},
        dataset={"path": work.dataset.name, "sha256": work.sha256, "num_samples": len(work.rows)},
        environment=facts.environment,
    )
