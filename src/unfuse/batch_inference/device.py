"""One device that answers scenes: a loaded model, its workers, and the flow between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.flow import Flow, FlowSettings
from unfuse.batch_inference.pool import NextScene
from unfuse.batch_inference.scenes import PreparedScene
from unfuse.batch_inference.store import CacheWriter, StoreConfig, StoreLookup
from unfuse.batch_inference.times import PoolUse, Times
from unfuse.batch_inference.workers import SCENE_SECONDS, WorkerHost, WorkerSettings, default_workers, open_pool
from unfuse.benchmarking.manifest import describe_model
from unfuse.loading import load, resolve_placement
from unfuse.measure.environment import environment
from unfuse.staged_model import StagedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceJob:
    """The job of one device; a plain value that other processes can receive."""

    model: str
    """As for ``unfuse.load``."""
    device: str
    dtype: str
    engine: str
    flow: FlowSettings
    workers: int | None = None
    """Processes that load and preprocess; by default as many as suit the device; 0 uses a thread of this process."""
    scene_seconds: float = SCENE_SECONDS
    """As for ``WorkerSettings``."""
    store: StoreConfig | None = None
    """Store of encoded scenes."""
    devices: int = 1
    """Number of devices that share the cores of this host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """Facts of a device with a loaded model."""

    model: dict[str, Any]
    """As in ``run.json``."""
    environment: dict[str, Any]
    workers: int
    capacity: int
    """Questions answered at the same time."""
    ahead: int
    """Scenes that keep the device busy beside those: being prepared, prepared, or encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceResult:
    """Result of a device that has answered all its scenes."""

    times: Times
    worker_deaths: int
    most_held: int | None
    """Largest number of started and unanswered questions; None on a cluster, as Ray holds them."""
    scenes_found: int = 0
    """Scenes with features in the store."""
    not_kept: str | None = None
    """Reason why a scene was last not written to the store."""
    pools: tuple[PoolUse, ...] = ()
    """Actors of each stage, on a cluster."""


class DeviceRunner:
    """A device that is ready to answer. A context manager; leaving it frees model and workers."""

    def __init__(self, job: DeviceJob, model: StagedModel | None = None):
        """Load the model and start workers at the same time.

        Args:
            job: settings.
            model: a loaded model; it stays loaded.

        Raises:
            CheckpointError: no such model.
            DeviceError: no such device, or the workers do not start.
        """
        device, dtype = resolve_placement(job.device, job.dtype) if model is None else (model.device, model.dtype)
        num_workers = default_workers(device, job.devices) if job.workers is None else job.workers
        self._job = job
        self._host = WorkerHost(job.model, str(dtype).removeprefix("torch.")) if num_workers else None
        self._own = model is None
        try:
            self._model = model or load(job.model, device=job.device, dtype=job.dtype, engine=job.engine)
            self._workers = num_workers or 1
            self._capacity = self._prepared_capacity()
            if self._host is not None:
                self._host.wait()
        except BaseException:
            if self._host is not None:
                self._host.close()
            raise

    def _prepared_capacity(self) -> int:
        """Compile and capture the batch's kernels before the clock runs; return its capacity."""
        batch = self._model.continuous(self._job.flow.capacity)
        try:
            batch.prepare()
            return batch.capacity
        finally:
            batch.close()

    @property
    def _room(self) -> int:
        """Prepared scenes that may wait: the next encode batch and the one after it."""
        return 2 * self._job.flow.encode_together

    @property
    def facts(self) -> DeviceFacts:
        """See ``DeviceFacts``."""
        return DeviceFacts(
            model=describe_model(self._model),
            environment=environment(self._model.device),
            workers=self._workers,
            capacity=self._capacity,
            ahead=self._workers + self._room + self._job.flow.encode_together,
        )

    def answer(
        self,
        scenes: NextScene,
        emit: Callable[[Answer], None],
        started: Callable[[PreparedScene], None] | None = None,
    ) -> DeviceResult:
        """Answer all scenes.

        Args:
            scenes: returns the next scene; called by several threads.
            emit: called with every answer.
            started: called with every scene when the flow takes it, on the thread of ``emit``.

        Raises:
            UnfuseError: the workers cannot go on.
        """
        model, settings, store = self._model, self._job.flow, self._job.store
        lookup = writer = None
        if store is not None:
            dtype = str(model.dtype).removeprefix("torch.")
            lookup = StoreLookup(store=store, model_fingerprint=model.fingerprint, dtype=dtype)
            writer = CacheWriter(store.open())
        pinned = model.device.type == "cuda"
        preprocessor = model.adapter.preprocessor
        with ExitStack() as stack:
            if writer is not None:
                stack.callback(writer.close)
            workers = WorkerSettings(lookup=lookup, pinned=pinned, scene_seconds=self._job.scene_seconds)
            pool = open_pool(preprocessor, self._host, self._workers, room=self._room, settings=workers)
            stack.enter_context(pool)
            flow = Flow(model, pool, settings, emit, writer, started)
            start = time.perf_counter()
            pool.start(scenes)
            flow.run()
            times = flow.times(time.perf_counter() - start)
        return DeviceResult(
            times=times if writer is None else replace(times, store_s=writer.busy_s),
            worker_deaths=pool.deaths,
            most_held=flow.most_held,
            scenes_found=flow.scenes_found,
            not_kept=None if writer is None else writer.trouble,
        )

    def close(self) -> None:
        """Free model and workers."""
        if self._host is not None:
            self._host.close()
        if self._own:
            self._model.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
