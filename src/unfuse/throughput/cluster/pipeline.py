"""A dataset through the pools of a cluster: what ``unfuse run --ray`` runs in the place of this machine's devices.

    scenes --> Load actors --> Preprocess actors --> Encode actors --> AnswerAll actors --> emit

Ray Data streams: it keeps what waits between two pools within its object store's budget, starts actors that died again
and runs what they had in hand once more. What is lost for good, because its actors died of it every time, is tried
again scene by scene, so that one scene takes nobody else with it; then it is a failed answer.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from unfuse.errors import CheckpointError, DeviceError, UnfuseError
from unfuse.loading import load
from unfuse.measure.environment import environment, package_version
from unfuse.protocols.bench import about
from unfuse.throughput.cluster.connection import connected
from unfuse.throughput.cluster.pools import ON_DEVICE, POOLS, Share, pool_sizes, shares
from unfuse.throughput.cluster.rows import answers_of, from_table, scene_row, to_table
from unfuse.throughput.cluster.settings import RaySettings
from unfuse.throughput.cluster.stages import ACTORS, Task
from unfuse.throughput.device import DeviceFacts, DeviceJob, DeviceResult
from unfuse.throughput.flow import Answer
from unfuse.throughput.scenes import Scene
from unfuse.throughput.times import PoolUse, Times
from unfuse.unavailable import Unavailable

_ROWS_TOGETHER: Final = 8
"""Scenes that travel together: enough that Ray's part of a task is small, few enough that little is run again."""
_CALLS: Final = 8
"""Tables that an actor of stage 4 answers at a time; together they hold more than its batch has room for."""
_RETRIES: Final = 2
"""Times that a table is tried again after its actor died."""


class RayPipeline:
    """The pools of a cluster in the place of devices. A context manager; leaving it disconnects."""

    def __init__(self, job: DeviceJob, settings: RaySettings):
        """Connects, and asks one actor of the cluster what the model is there.

        Raises:
            CheckpointError: no such model there.
            DeviceError: no cluster, or none with such a device.
        """
        if job.device not in ("auto", "cpu", "cuda"):
            raise DeviceError("device", found=job.device, expected="auto, cpu or cuda: Ray says which one")
        self._connection = connected(settings.address)
        self._ray = self._connection.__enter__()
        try:
            self._begin(job, settings)
        except BaseException:
            self.close()
            raise

    def _begin(self, job: DeviceJob, settings: RaySettings) -> None:
        there = self._ray.cluster_resources()
        cpus, gpus = there.get("CPU", 0.0), there.get("GPU", 0.0)
        on_gpu = job.device == "cuda" or (job.device == "auto" and gpus > 0)
        self._sizes = pool_sizes(settings.pools, cpus, gpus, on_gpu=on_gpu)
        self._shares = shares(self._sizes, cpus, gpus, on_gpu=on_gpu)
        name, folder = job.model, Path(job.model)
        job = replace(
            job,
            model=str(folder.absolute()) if folder.is_dir() else job.model,
            device="cuda" if on_gpu else "cpu",
            dtype=("bfloat16" if on_gpu else "float32") if job.dtype == "auto" else job.dtype,
        )
        share = self._shares["answer"]
        with _explained():
            told = self._ray.get(
                self._ray.remote(_described)
                .options(num_cpus=share.cpus, num_gpus=share.gpus, max_retries=1)
                .remote(job)
            )
        if isinstance(told, Unavailable):
            raise CheckpointError(told.reason)
        model, place, capacity = told
        pools = {name: str(size) for name, size in self._sizes.items()}
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        ray = {"version": package_version("ray"), "nodes": len(nodes), "cpus": cpus, "gpus": gpus, "pools": pools}
        self.facts = DeviceFacts(
            model={**model, "name": name},
            environment={**place, "ray": ray},
            workers=self._sizes["load"].least + self._sizes["preprocess"].least,
            capacity=capacity * self._sizes["answer"].least,
            ahead=0,  # Ray decides
        )
        self.deaths: tuple[str, ...] = ()
        self._encode_together = job.flow.encode_together
        self._answer_together = max(_ROWS_TOGETHER, -(-2 * capacity // _CALLS))
        self._task = Task(
            model=job.model,
            device=job.device,
            dtype=job.dtype,
            engine=job.engine,
            fingerprint=model["fingerprint"],
            flow=job.flow,
        )

    def answer(self, scenes: list[Scene], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        """Answers all scenes, each question once.

        Raises:
            DeviceError: the cluster cannot go on.
        """
        begun = time.perf_counter()
        left = {each.sample_id: each for scene in scenes for each in scene.asked}
        costs = _Costs()
        for alone in (False, True):
            missing = [
                replace(scene, asked=asked)
                for scene in scenes
                if (asked := tuple(each for each in scene.asked if each.sample_id in left))
            ]
            if not missing:
                break
            with closing(self._stream(missing, alone=alone)) as rows:
                for cost, answers in rows:
                    costs.add(cost)
                    for answer in answers:
                        # Ray may run a task again whose answers have arrived.
                        if left.pop(answer.asked.sample_id, None) is not None:
                            emit(answer)
        for lost in left.values():
            emit(Answer(asked=lost, media_sha256="", error=f"its actors died of it {2 * (_RETRIES + 1)} times"))
        wall_s = time.perf_counter() - begun
        return [DeviceResult(
            times=costs.times(wall_s), worker_deaths=costs.restarts, most_held=None, pools=costs.pools(),
        )]  # fmt: skip

    def close(self) -> None:
        """Disconnects; a cluster of this run's own ends."""
        self._connection.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stream(
        self, scenes: list[Scene], *, alone: bool
    ) -> Generator[tuple[dict[str, Any], Iterator[Answer]], None, None]:
        """Rows as they end, with what they cost."""
        data = self._ray.data
        most = sum(self._sizes[name].most for name in POOLS)
        together = 1 if alone else max(1, min(_ROWS_TOGETHER, len(scenes) // (2 * most)))
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.enable_auto_log_stats = False
        # What died for good is found missing, and is no reason to stop.
        context.max_errored_blocks = -1
        with data.DataContext.current(context), _explained():
            tables = [
                to_table([scene_row(scene) for scene in scenes[at : at + together]])
                for at in range(0, len(scenes), together)
            ]
            dataset = data.from_arrow(tables)
            del tables
            for name in POOLS:
                dataset = self._mapped(dataset, name, together, alone)
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in from_table(table):
                    yield row.facts["cost"], answers_of(row)

    def _mapped(self, dataset: Any, name: str, together: int, alone: bool) -> Any:
        share: Share = self._shares[name]
        size = self._sizes[name]
        calls = _CALLS if name == "answer" else 1
        # Few scenes are answered as they come; of many, so many together that Ray's part of it is small.
        few = together < _ROWS_TOGETHER
        answers = max(together, self._encode_together) if few else self._answer_together
        sizes = {"encode": self._encode_together, "answer": answers}
        with warnings.catch_warnings():
            # Two of them have no other way in; 2.64 may take this one away, and pyproject.toml stops before it.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            return dataset.map_batches(
                ACTORS[name],
                fn_constructor_args=(self._task,),
                batch_format="pyarrow",
                batch_size=1 if alone else sizes.get(name),
                zero_copy_batch=True,
                compute=self._ray.data.ActorPoolStrategy(
                    min_size=size.least,
                    max_size=size.most,
                    max_tasks_in_flight_per_actor=calls + 1,
                    max_concurrent_calls_per_actor=calls,
                    enable_true_multi_threading=calls > 1,
                ),
                num_cpus=share.cpus,
                num_gpus=share.gpus if name in ON_DEVICE else 0,
                max_restarts=-1,
                max_task_retries=_RETRIES,
            )


class _Costs:
    """What actors say of their own time; the last word of each process counts."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str, int], dict[str, Any]] = {}

    def add(self, cost: Mapping[str, Mapping[str, Any]]) -> None:
        """What came along with one row."""
        for stage, own in cost.items():
            key = (stage, own["actor"], own["process"])
            if key not in self._said or own["alive_s"] > self._said[key]["alive_s"]:
                self._said[key] = dict(own)

    @property
    def restarts(self) -> int:
        """Processes that took the place of one that had said something, and said something as well."""
        return len(self._said) - len({(stage, actor) for stage, actor, _ in self._said})

    def pools(self) -> tuple[PoolUse, ...]:
        """Of each stage."""
        made = []
        for name in POOLS:
            said = [own for (stage, *_), own in self._said.items() if stage == name]
            busy = [sum(own["busy_s"].values()) for own in said]
            alive_s = sum(own["alive_s"] for own in said)
            made.append(PoolUse(stage=name, actors=len(said), busy_s=sum(busy), alive_s=alive_s))
        return tuple(made)

    def times(self, wall_s: float) -> Times:
        """Of all actors together."""
        busy = dict.fromkeys(("load", "preprocess", "encode", "prefill", "decode"), 0.0)
        for own in self._said.values():
            for part, seconds in own["busy_s"].items():
                busy[part] += seconds
        pools = {use.stage: use.actors for use in self.pools()}
        return Times(
            wall_s=wall_s,
            devices=pools["encode"] + pools["answer"],
            workers=pools["load"] + pools["preprocess"],
            **{f"{part}_s": seconds for part, seconds in busy.items()},
        )


def _described(job: DeviceJob) -> tuple[dict[str, Any], dict[str, Any], int] | Unavailable:
    """In a process of the cluster: the model, the machine, and how many questions it answers at a time."""
    try:
        with load(job.model, device=job.device, dtype=job.dtype, engine=job.engine) as model:
            batch = model.continuous(job.flow.capacity)
            try:
                return about(model), environment(model.device), batch.capacity
            finally:
                batch.close()
    except UnfuseError as error:
        return Unavailable(str(error))


@contextmanager
def _explained() -> Iterator[None]:
    """What ends a cluster's work, as one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith("unfuse.errors.")]
        reason = ours[-1].partition(": ")[2] if ours else lines[-1] if lines else type(error).__name__
        raise DeviceError(
            "ray", found=f"a cluster that cannot go on ({reason})", expected="one that can",
            fix="what is answered is kept: continue with --resume",
        ) from None  # fmt: skip
