"""A dataset through the actor pools of a cluster: ``unfuse run --ray``.

    scenes --> Load actors --> Preprocess actors --> Encode actors --> AnswerAll actors --> emit

Ray Data streams the scenes: it limits the memory between two pools to its object store's budget, restarts actors that
died and runs their tasks again. A table is lost if its actors died every time. Its scenes are then tried once more one
by one, so that a scene that kills its actor takes no other scene with it; then its answers are failures.
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

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.cluster.connection import connected
from unfuse.batch_inference.cluster.pools import ON_DEVICE, POOLS, ActorResources, actor_resources, pool_sizes
from unfuse.batch_inference.cluster.rows import answers_of, from_table, scene_row, to_table
from unfuse.batch_inference.cluster.settings import RaySettings
from unfuse.batch_inference.cluster.stages import ACTORS, Task
from unfuse.batch_inference.device import DeviceFacts, DeviceJob, DeviceResult
from unfuse.batch_inference.scenes import SceneQuestions
from unfuse.batch_inference.times import PoolUse, Times
from unfuse.benchmarking.manifest import describe_model
from unfuse.errors import CheckpointError, DeviceError, UnfuseError
from unfuse.loading import load
from unfuse.measure.environment import environment, package_version
from unfuse.unavailable import Unavailable

_ROWS_TOGETHER: Final = 8
"""Scenes in a table: enough that Ray's overhead is small, few enough that little work is repeated."""
_CALLS: Final = 8
"""Tables that an actor of stage 4 answers at a time; together they exceed the capacity of its batch."""
_RETRIES: Final = 2
"""Number of times that a table is tried again after its actor died."""


class RayPipeline:
    """The actor pools of a cluster, used like devices. A context manager; leaving it disconnects."""

    def __init__(self, job: DeviceJob, settings: RaySettings):
        """Connect, and load the model once on the cluster to describe it.

        Raises:
            CheckpointError: the cluster cannot load the model.
            DeviceError: no cluster, or no such device on it.
        """
        if job.device not in ("auto", "cpu", "cuda"):
            raise DeviceError("device", found=job.device, expected="auto, cpu or cuda: Ray says which one")
        self._connection = connected(settings.address)
        self._ray = self._connection.__enter__()
        try:
            self._start(job, settings)
        except BaseException:
            self.close()
            raise

    def _start(self, job: DeviceJob, settings: RaySettings) -> None:
        available = self._ray.cluster_resources()
        cpus, gpus = available.get("CPU", 0.0), available.get("GPU", 0.0)
        on_gpu = job.device == "cuda" or (job.device == "auto" and gpus > 0)
        self._sizes = pool_sizes(settings.pools, cpus, gpus, on_gpu=on_gpu)
        self._resources = actor_resources(self._sizes, cpus, gpus, on_gpu=on_gpu)
        name, folder = job.model, Path(job.model)
        job = replace(
            job,
            model=str(folder.absolute()) if folder.is_dir() else job.model,
            device="cuda" if on_gpu else "cpu",
            dtype=("bfloat16" if on_gpu else "float32") if job.dtype == "auto" else job.dtype,
        )
        resources = self._resources["answer"]
        with _one_line_errors():
            described = self._ray.get(
                self._ray.remote(_describe)
                .options(num_cpus=resources.cpus, num_gpus=resources.gpus, max_retries=1)
                .remote(job)
            )
        if isinstance(described, Unavailable):
            raise CheckpointError(described.reason)
        model, machine, capacity = described
        pools = {name: str(size) for name, size in self._sizes.items()}
        nodes = [node for node in self._ray.nodes() if node["Alive"]]
        ray = {"version": package_version("ray"), "nodes": len(nodes), "cpus": cpus, "gpus": gpus, "pools": pools}
        self.facts = DeviceFacts(
            model={**model, "name": name},
            environment={**machine, "ray": ray},
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

    def answer(self, scenes: list[SceneQuestions], emit: Callable[[Answer], None]) -> list[DeviceResult]:
        """Answer all scenes, each question once.

        Raises:
            DeviceError: the cluster cannot go on.
        """
        start = time.perf_counter()
        unanswered = {each.question_id: each for scene in scenes for each in scene.questions}
        costs = _Costs()
        for one_by_one in (False, True):
            missing = [
                replace(scene, questions=questions)
                for scene in scenes
                if (questions := tuple(each for each in scene.questions if each.question_id in unanswered))
            ]
            if not missing:
                break
            with closing(self._stream(missing, one_by_one=one_by_one)) as rows:
                for cost, answers in rows:
                    costs.add(cost)
                    for answer in answers:
                        # Ray may repeat a task after its answers have arrived.
                        if unanswered.pop(answer.question.question_id, None) is not None:
                            emit(answer)
        failure = Unavailable(f"its actors died of it {2 * (_RETRIES + 1)} times")
        for question in unanswered.values():
            emit(Answer(question=question, generation=failure))
        wall_s = time.perf_counter() - start
        return [DeviceResult(
            times=costs.times(wall_s), worker_deaths=costs.restarts, most_held=None, pools=costs.pools(),
        )]  # fmt: skip

    def close(self) -> None:
        """Disconnect; a cluster that this run started ends."""
        self._connection.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _stream(
        self, scenes: list[SceneQuestions], *, one_by_one: bool
    ) -> Generator[tuple[dict[str, Any], Iterator[Answer]], None, None]:
        """Yield the costs and answers of each row as it ends."""
        data = self._ray.data
        most = sum(self._sizes[name].most for name in POOLS)
        together = 1 if one_by_one else max(1, min(_ROWS_TOGETHER, len(scenes) // (2 * most)))
        context = data.DataContext.get_current().copy()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.enable_auto_log_stats = False
        # A lost table is found by its missing answers and must not stop the others.
        context.max_errored_blocks = -1
        with data.DataContext.current(context), _one_line_errors():
            tables = [
                to_table([scene_row(scene) for scene in scenes[at : at + together]])
                for at in range(0, len(scenes), together)
            ]
            dataset = data.from_arrow(tables)
            del tables
            for name in POOLS:
                dataset = self._mapped(dataset, name, together, one_by_one)
            for table in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                for row in from_table(table):
                    yield row.facts["cost"], answers_of(row)

    def _mapped(self, dataset: Any, name: str, together: int, one_by_one: bool) -> Any:
        resources: ActorResources = self._resources[name]
        size = self._sizes[name]
        calls = _CALLS if name == "answer" else 1
        # Few scenes are answered as they come; many are grouped, so that Ray's overhead is small.
        few = together < _ROWS_TOGETHER
        answers = max(together, self._encode_together) if few else self._answer_together
        sizes = {"encode": self._encode_together, "answer": answers}
        with warnings.catch_warnings():
            # Two of these options have no other way in; Ray 2.64 may remove this one, and pyproject.toml excludes it.
            warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
            return dataset.map_batches(
                ACTORS[name],
                fn_constructor_args=(self._task,),
                batch_format="pyarrow",
                batch_size=1 if one_by_one else sizes.get(name),
                zero_copy_batch=True,
                compute=self._ray.data.ActorPoolStrategy(
                    min_size=size.least,
                    max_size=size.most,
                    max_tasks_in_flight_per_actor=calls + 1,
                    max_concurrent_calls_per_actor=calls,
                    enable_true_multi_threading=calls > 1,
                ),
                num_cpus=resources.cpus,
                num_gpus=resources.gpus if name in ON_DEVICE else 0,
                max_restarts=-1,
                max_task_retries=_RETRIES,
            )


class _Costs:
    """Times that actors report about themselves; the last report of each process counts."""

    def __init__(self) -> None:
        self._reports: dict[tuple[str, str, int], dict[str, Any]] = {}

    def add(self, cost: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the reports of one row."""
        for stage, own in cost.items():
            key = (stage, own["actor"], own["process"])
            if key not in self._reports or own["alive_s"] > self._reports[key]["alive_s"]:
                self._reports[key] = dict(own)

    @property
    def restarts(self) -> int:
        """Number of processes that replaced a process after its first report."""
        return len(self._reports) - len({(stage, actor) for stage, actor, _ in self._reports})

    def pools(self) -> tuple[PoolUse, ...]:
        """Return the use of each pool."""
        uses = []
        for name in POOLS:
            reports = [own for (stage, *_), own in self._reports.items() if stage == name]
            busy = [sum(own["busy_s"].values()) for own in reports]
            alive_s = sum(own["alive_s"] for own in reports)
            uses.append(PoolUse(stage=name, actors=len(reports), busy_s=sum(busy), alive_s=alive_s))
        return tuple(uses)

    def times(self, wall_s: float) -> Times:
        """Return the sums over all actors."""
        busy = dict.fromkeys(("load", "preprocess", "encode", "prefill", "decode"), 0.0)
        for own in self._reports.values():
            for part, seconds in own["busy_s"].items():
                busy[part] += seconds
        pools = {use.stage: use.actors for use in self.pools()}
        return Times(
            wall_s=wall_s,
            devices=pools["encode"] + pools["answer"],
            workers=pools["load"] + pools["preprocess"],
            **{f"{part}_s": seconds for part, seconds in busy.items()},
        )


def _describe(job: DeviceJob) -> tuple[dict[str, Any], dict[str, Any], int] | Unavailable:
    """Describe the model and the machine, in a process of the cluster; the last value is the batch's capacity."""
    try:
        with load(job.model, device=job.device, dtype=job.dtype, engine=job.engine) as model:
            batch = model.continuous(job.flow.capacity)
            try:
                return describe_model(model), environment(model.device), batch.capacity
            finally:
                batch.close()
    except UnfuseError as error:
        return Unavailable(str(error))


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Convert an error of Ray to one line."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith("unfuse.errors.")]
        reason = ours[-1].partition(": ")[2] if ours else lines[-1] if lines else type(error).__name__
        raise DeviceError(
            "ray", found=f"a cluster that cannot go on ({reason})", expected="a cluster that runs to the end",
            fix="finished answers are on disk: continue with --resume",
        ) from None  # fmt: skip
