"""Everything that one device needs to answer scenes: a loaded model, workers, and the flow between them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

from unfuse.loading import load, resolve_placement
from unfuse.measure.environment import environment
from unfuse.protocols.bench import about
from unfuse.staged_model import StagedModel
from unfuse.throughput.flow import Answer, Flow, FlowSettings
from unfuse.throughput.kept import Keeper, Kept, StorePlace
from unfuse.throughput.pool import NextScene
from unfuse.throughput.scenes import PreparedScene
from unfuse.throughput.times import PoolUse, Times
from unfuse.throughput.workers import SCENE_SECONDS, WorkerHost, default_workers, open_pool


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceJob:
    """What one device is to do; a plain value, so that another process can be told it."""

    model: str
    """As for ``unfuse.load``."""
    device: str
    dtype: str
    engine: str
    flow: FlowSettings
    workers: int | None = None
    """Processes that load and preprocess; None takes what suits the device, 0 a thread of this process."""
    scene_seconds: float = SCENE_SECONDS
    """As for ``WorkerProcess``."""
    store: StorePlace | None = None
    """Where encoded scenes are kept and looked for."""
    devices: int = 1
    """That share the cores of this host."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceFacts:
    """What is known of a device once its model is loaded."""

    model: dict[str, Any]
    """As ``run.json`` has it."""
    environment: dict[str, Any]
    workers: int
    capacity: int
    """Questions answered at the same time."""
    ahead: int
    """Scenes that are worth having beside these: being prepared, prepared, or encoded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceResult:
    """What is known of a device once it has no more to do."""

    times: Times
    worker_deaths: int
    most_held: int | None
    """Questions taken up and not answered, at any one time; None on a cluster, where Ray holds them."""
    scenes_found: int = 0
    """Scenes whose features were in the store."""
    not_kept: str | None = None
    """Why a scene was last not put into the store."""
    pools: tuple[PoolUse, ...] = ()
    """On a cluster: the actors of each stage."""


class DeviceRunner:
    """A device that is ready to answer. A context manager; leaving it frees model and workers."""

    def __init__(self, job: DeviceJob, model: StagedModel | None = None):
        """Loads the model, and starts workers meanwhile.

        Args:
            job: what is to be done.
            model: one that is loaded already; it stays loaded.

        Raises:
            CheckpointError: no such model.
            DeviceError: no such device, or the workers do not start.
        """
        device, dtype = resolve_placement(job.device, job.dtype) if model is None else (model.device, model.dtype)
        wanted = default_workers(device, job.devices) if job.workers is None else job.workers
        self._job = job
        self._host = WorkerHost(job.model, str(dtype).removeprefix("torch.")) if wanted else None
        self._own = model is None
        try:
            self._model = model or load(job.model, device=job.device, dtype=job.dtype, engine=job.engine)
            self._workers = wanted or 1
            self._capacity = self._prepared_capacity()
            if self._host is not None:
                self._host.wait()
        except BaseException:
            if self._host is not None:
                self._host.close()
            raise

    def _prepared_capacity(self) -> int:
        """Questions answered at the same time; what that needs is compiled and captured here, before the clock runs."""
        batch = self._model.continuous(self._job.flow.capacity)
        try:
            batch.prepare()
            return batch.capacity
        finally:
            batch.close()

    @property
    def _room(self) -> int:
        """Prepared scenes that may wait: the next that are encoded together, and those after them."""
        return 2 * self._job.flow.encode_together

    @property
    def facts(self) -> DeviceFacts:
        """See ``DeviceFacts``."""
        return DeviceFacts(
            model=about(self._model),
            environment=environment(self._model.device),
            workers=self._workers,
            capacity=self._capacity,
            ahead=self._workers + self._room + self._job.flow.encode_together,
        )

    def answer(
        self,
        scenes: NextScene,
        emit: Callable[[Answer], None],
        begun: Callable[[PreparedScene], None] | None = None,
    ) -> DeviceResult:
        """Answers all scenes.

        Args:
            scenes: gives them, one at a time, to several threads.
            emit: called with every answer.
            begun: called with every scene when its turn has come, on the thread of ``emit``.

        Raises:
            UnfuseError: the workers cannot go on.
        """
        model, settings, place = self._model, self._job.flow, self._job.store
        known = keep = None
        if place is not None:
            dtype = str(model.dtype).removeprefix("torch.")
            known, keep = Kept(place=place, model_fingerprint=model.fingerprint, dtype=dtype), Keeper(place.open())
        pinned = model.device.type == "cuda"
        front = model.adapter.front
        with ExitStack() as stack:
            if keep is not None:
                stack.callback(keep.close)
            pool = open_pool(
                front, self._host, self._workers, room=self._room, known=known, pinned=pinned,
                scene_seconds=self._job.scene_seconds,
            )  # fmt: skip
            stack.enter_context(pool)
            flow = Flow(model, pool, settings, emit, keep, begun)
            started = time.perf_counter()
            pool.start(scenes)
            flow.run()
            times = flow.times(time.perf_counter() - started)
        return DeviceResult(
            times=times if keep is None else replace(times, store_s=keep.busy_s),
            worker_deaths=pool.deaths,
            most_held=flow.most_held,
            scenes_found=flow.scenes_found,
            not_kept=None if keep is None else keep.trouble,
        )

    def close(self) -> None:
        """Frees model and workers."""
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
