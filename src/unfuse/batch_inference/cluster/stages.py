"""The actors of a cluster: one class for each stage; each turns a table of rows into the next table.

A failure of one scene becomes the reason in its answers; an actor fails only with its process. The actor of Stage 4
answers several calls at a time in one continuous batch, so that the batch does not run empty between calls.
"""

from __future__ import annotations

import itertools
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.cluster.rows import (
    SceneRow,
    answers_row,
    from_table,
    loaded_of,
    loaded_row,
    prepared_of,
    prepared_row,
    scene_of,
    to_table,
    without_pixels,
)
from unfuse.batch_inference.flow import Flow, FlowSettings, features_of
from unfuse.batch_inference.pool import PoolTimes
from unfuse.batch_inference.scenes import PreparedScene, prompts_of, reason_of
from unfuse.batch_inference.times import Stopwatch
from unfuse.errors import CheckpointError
from unfuse.loading import load, open_preprocessor
from unfuse.samples import Question
from unfuse.staged_model import StagedModel
from unfuse.unavailable import Unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Settings of all actors."""

    model: str
    """As for ``unfuse.load``; a folder has the same path on every machine."""
    device: str
    dtype: str
    engine: str
    fingerprint: str
    """Fingerprint that the model must have on every machine."""
    flow: FlowSettings


class _Actor:
    """Adds an actor's own times to its rows."""

    stage: str

    def __init__(self) -> None:
        self._ready = time.perf_counter()
        self._busy = 0.0

    def _with_times(self, rows: Iterable[SceneRow], earlier: Iterable[SceneRow], **busy: float) -> Any:
        """Return a table of ``rows`` with the costs of ``earlier`` and this actor's cost so far."""
        import ray

        own = {
            "actor": ray.get_runtime_context().get_actor_id(),
            "process": os.getpid(),
            "alive_s": time.perf_counter() - self._ready,
            "busy_s": busy or {self.stage: self._busy},
        }
        return to_table(
            [
                SceneRow({**row.facts, "cost": {**before.facts.get("cost", {}), self.stage: own}}, row.tensors)
                for row, before in zip(rows, earlier, strict=True)
            ]
        )


class _HostActor(_Actor):
    """A stage without the network, row by row."""

    def __init__(self, task: Task):
        self._preprocessor = open_preprocessor(task.model, task.dtype)
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Run the stage on every row."""
        rows = list(from_table(table))
        start = time.perf_counter()
        results = [self._run(row) for row in rows]
        self._busy += time.perf_counter() - start
        return self._with_times(results, rows)

    def _run(self, row: SceneRow) -> SceneRow:
        raise NotImplementedError


class Load(_HostActor):
    """Stage 1: scenes to frames."""

    stage = "load"

    def _run(self, row: SceneRow) -> SceneRow:
        scene = scene_of(row)
        try:
            return loaded_row(scene.questions, self._preprocessor.load(scene.sample))
        except Exception as error:  # noqa: BLE001 - an error of one scene must not stop the others
            return loaded_row(scene.questions, Unavailable(reason_of(error)))


class Preprocess(_HostActor):
    """Stage 2: frames to pixel values and token ids."""

    stage = "preprocess"

    def _run(self, row: SceneRow) -> SceneRow:
        questions, loaded = loaded_of(row)
        if isinstance(loaded, Unavailable):
            return loaded_row(questions, loaded)
        prompts = prompts_of(self._preprocessor, questions, loaded)
        return prepared_row(PreparedScene(questions=questions, prompts=prompts, media_sha256=loaded.media_sha256))


class Encode(_Actor):
    """Stage 3: the scenes of a table together."""

    stage = "encode"

    def __init__(self, task: Task):
        # Engine vllm encodes as eager does, and would reserve the memory that it finds for answers.
        self._model = _loaded(replace(task, engine="eager") if task.engine == "vllm" else task)
        self._watch = Stopwatch(self._model.device)
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Turn pixel values into features."""
        rows = list(from_table(table))
        scenes = [prepared_of(row) for row in rows]
        pixels = [(i, scene.pixels) for i, scene in enumerate(scenes)]
        uploaded = [(i, self._model.adapter.upload(prompt)) for i, prompt in pixels if prompt is not None]
        with self._watch.running():
            found = features_of(self._model, [prompt for _, prompt in uploaded]) if uploaded else []
        for (index, _), features in zip(uploaded, found, strict=True):
            scene = scenes[index]
            if isinstance(features, Unavailable):
                # A prompt that failed before keeps its own reason.
                prompts = tuple(each if isinstance(each, Unavailable) else features for each in scene.prompts)
                scenes[index] = replace(scene, prompts=prompts)
                continue
            stripped = tuple(
                each if isinstance(each, Unavailable) else without_pixels(each, features) for each in scene.prompts
            )
            scenes[index] = replace(scene, features=features.to("cpu"), prompts=stripped)
        self._busy = self._watch.seconds()
        return self._with_times([prepared_row(scene) for scene in scenes], rows)


class AnswerAll(_Actor):
    """Stage 4: one continuous batch for the questions of all calls."""

    stage = "answer"

    def __init__(self, task: Task):
        self._model = _loaded(task)
        self._source = _CallSource()
        self._lock = threading.Lock()
        self._ids = itertools.count()
        self._calls: dict[str, _Call] = {}
        self._flow = Flow(self._model, self._source, task.flow, self._answered)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Turn features into answers; runs on several threads."""
        rows = list(from_table(table))
        call = _Call()
        scenes = [self._renamed(prepared_of(row), call) for row in rows]
        self._source.put(scenes)
        call.done.wait()
        answers = [[call.answers[each.question_id] for each in scene.questions] for scene in scenes]
        times = self._flow.times(0.0)
        results = [answers_row(each) for each in answers]
        return self._with_times(results, rows, prefill=times.prefill_s, decode=times.decode_s)

    def _renamed(self, scene: PreparedScene, call: _Call) -> PreparedScene:
        """Give questions IDs that are unique among calls: Ray may run the same task twice at a time."""
        questions = []
        with self._lock:
            for each in scene.questions:
                own_id = str(next(self._ids))
                self._calls[own_id] = call
                call.questions[own_id] = each
                questions.append(replace(each, question_id=own_id))
        return replace(scene, questions=tuple(questions))

    def _answered(self, answer: Answer) -> None:
        own_id = answer.question.question_id
        with self._lock:
            call = self._calls.pop(own_id)
        # The features came with the row and not from a store.
        call.answers[own_id] = replace(answer, question=call.questions[own_id], features_cached=False)
        if len(call.answers) == len(call.questions):
            call.done.set()

    def _work(self) -> None:
        try:
            self._flow.run()
        except BaseException:  # noqa: BLE001 - the process ends with it
            traceback.print_exc(file=sys.stderr)
        # Open calls would wait for ever. Ray starts another process and runs their tasks again.
        os._exit(1)


class _Call:
    """The questions of one call by their IDs in the batch, and their answers."""

    def __init__(self) -> None:
        self.questions: dict[str, Question] = {}
        self.answers: dict[str, Answer] = {}
        self.done = threading.Event()


class _CallSource:
    """Source of the scenes that calls bring; it never ends."""

    size = 1
    ended = False

    def __init__(self) -> None:
        self.times = PoolTimes()
        self._scenes: queue.SimpleQueue[PreparedScene] = queue.SimpleQueue()

    @property
    def starved(self) -> bool:
        return self._scenes.empty()

    def put(self, scenes: Sequence[PreparedScene]) -> None:
        for scene in scenes:
            self._scenes.put(scene)

    def take(self, *, wait_s: float | None = 0.0) -> PreparedScene | None:
        with suppress(queue.Empty):
            return self._scenes.get(block=wait_s != 0, timeout=wait_s)
        return None


ACTORS = {"load": Load, "preprocess": Preprocess, "encode": Encode, "answer": AnswerAll}
"""Actor classes by pool."""


def _loaded(task: Task) -> StagedModel:
    model = load(task.model, device=task.device, dtype=task.dtype, engine=task.engine)
    if model.fingerprint != task.fingerprint:
        raise CheckpointError(
            task.model,
            found=f"another model on {os.uname().nodename} (fingerprint {model.fingerprint[:16]})",
            expected=f"the same on every machine ({task.fingerprint[:16]})",
        )
    return model
