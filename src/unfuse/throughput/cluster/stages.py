"""The actors: one class a stage, each from one table of rows to the next.

Whatever one scene does becomes the reason in the place of its answer; an actor fails only with its process. The last
stage answers several calls at a time in one continuous batch, so that it need not run empty between them.
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

from unfuse.errors import CheckpointError
from unfuse.loading import load, open_front
from unfuse.staged_model import StagedModel
from unfuse.throughput.cluster.rows import (
    Row,
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
from unfuse.throughput.flow import Answer, Flow, FlowSettings, features_of
from unfuse.throughput.pool import PoolTimes
from unfuse.throughput.scenes import Asked, PreparedScene, prompts_of, reason_of
from unfuse.throughput.times import Stopwatch
from unfuse.unavailable import Unavailable


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What actors are told."""

    model: str
    """As for ``unfuse.load``; a folder lies at the same place on every machine."""
    device: str
    dtype: str
    engine: str
    fingerprint: str
    """What the model must have on every machine."""
    flow: FlowSettings


class _Actor:
    """Keeps count of an actor's own time, which rides along with the rows."""

    stage: str

    def __init__(self) -> None:
        self._ready = time.perf_counter()
        self._busy = 0.0

    def _with_times(self, rows: Iterable[Row], earlier: Iterable[Row], **busy: float) -> Any:
        """A table of rows that say what they have cost so far."""
        import ray

        own = {
            "actor": ray.get_runtime_context().get_actor_id(),
            "process": os.getpid(),
            "alive_s": time.perf_counter() - self._ready,
            "busy_s": busy or {self.stage: self._busy},
        }
        return to_table(
            [
                Row({**row.facts, "cost": {**before.facts.get("cost", {}), self.stage: own}}, row.tensors)
                for row, before in zip(rows, earlier, strict=True)
            ]
        )


class Load(_Actor):
    """Stage 1."""

    stage = "load"

    def __init__(self, task: Task):
        self._front = open_front(task.model, task.dtype)
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Scenes to pictures."""
        rows = list(from_table(table))
        begun = time.perf_counter()
        made = []
        for row in rows:
            scene = scene_of(row)
            try:
                made.append(loaded_row(scene.asked, self._front.load(scene.sample)))
            except Exception as error:  # noqa: BLE001 - whatever one scene does, the others go on
                made.append(loaded_row(scene.asked, Unavailable(reason_of(error))))
        self._busy += time.perf_counter() - begun
        return self._with_times(made, rows)


class Preprocess(_Actor):
    """Stage 2."""

    stage = "preprocess"

    def __init__(self, task: Task):
        self._front = open_front(task.model, task.dtype)
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Pictures to pixels and ids."""
        rows = list(from_table(table))
        begun = time.perf_counter()
        made = []
        for row in rows:
            asked, loaded = loaded_of(row)
            if isinstance(loaded, Unavailable):
                made.append(loaded_row(asked, loaded))
                continue
            prompts = prompts_of(self._front, asked, loaded)
            made.append(prepared_row(PreparedScene(asked=asked, prompts=prompts, media_sha256=loaded.media_sha256)))
        self._busy += time.perf_counter() - begun
        return self._with_times(made, rows)


class Encode(_Actor):
    """Stage 3, as many scenes together as a table has rows."""

    stage = "encode"

    def __init__(self, task: Task):
        # vLLM's encodes as eager does, and would take for answers what memory it finds.
        self._model = _loaded(replace(task, engine="eager") if task.engine == "vllm" else task)
        self._watch = Stopwatch(self._model.device)
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Pixels to features."""
        rows = list(from_table(table))
        scenes = [prepared_of(row) for row in rows]
        pixels = [(i, scene.pixels) for i, scene in enumerate(scenes)]
        uploaded = [(i, self._model.adapter.upload(prompt)) for i, prompt in pixels if prompt is not None]
        with self._watch.running():
            found = features_of(self._model, [prompt for _, prompt in uploaded]) if uploaded else []
        for (index, _), features in zip(uploaded, found, strict=True):
            scene = scenes[index]
            if isinstance(features, Unavailable):
                # A prompt that could not be made keeps its own reason.
                prompts = tuple(each if isinstance(each, Unavailable) else features for each in scene.prompts)
                scenes[index] = replace(scene, prompts=prompts)
                continue
            kept = tuple(
                each if isinstance(each, Unavailable) else without_pixels(each, features) for each in scene.prompts
            )
            scenes[index] = replace(scene, features=features.to("cpu"), prompts=kept)
        self._busy = self._watch.seconds()
        return self._with_times([prepared_row(scene) for scene in scenes], rows)


class AnswerAll(_Actor):
    """Stage 4: one continuous batch that the questions of all calls join and leave."""

    stage = "answer"

    def __init__(self, task: Task):
        self._model = _loaded(task)
        self._desk = _Desk()
        self._lock = threading.Lock()
        self._names = itertools.count()
        self._waiting: dict[str, _Call] = {}
        self._flow = Flow(self._model, self._desk, task.flow, self._answered)
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        super().__init__()

    def __call__(self, table: Any) -> Any:
        """Features to answers; called by several threads."""
        rows = list(from_table(table))
        call = _Call()
        scenes = [self._renamed(prepared_of(row), call) for row in rows]
        self._desk.put(scenes)
        call.done.wait()
        answers = [[call.answers[each.sample_id] for each in scene.asked] for scene in scenes]
        times = self._flow.times(0.0)
        made = [answers_row(each) for each in answers]
        return self._with_times(made, rows, prefill=times.prefill_s, decode=times.decode_s)

    def _renamed(self, scene: PreparedScene, call: _Call) -> PreparedScene:
        """Names that no other call uses: Ray may ask the same question twice at a time."""
        asked = []
        with self._lock:
            for each in scene.asked:
                name = str(next(self._names))
                self._waiting[name] = call
                call.own[name] = each
                asked.append(replace(each, sample_id=name))
        return replace(scene, asked=tuple(asked))

    def _answered(self, answer: Answer) -> None:
        name = answer.asked.sample_id
        with self._lock:
            call = self._waiting.pop(name)
        # The features came with the row, not out of a store.
        call.answers[name] = replace(answer, asked=call.own[name], features_kept=False)
        if len(call.answers) == len(call.own):
            call.done.set()

    def _work(self) -> None:
        try:
            self._flow.run()
        except BaseException:  # noqa: BLE001 - the process ends with it
            traceback.print_exc(file=sys.stderr)
        # Nobody would be answered any more. Ray starts another and asks it again.
        os._exit(1)


class _Call:
    """Questions of one call."""

    def __init__(self) -> None:
        self.own: dict[str, Asked] = {}
        self.answers: dict[str, Answer] = {}
        self.done = threading.Event()


class _Desk:
    """Scenes that calls bring, as a pool that never ends: what ``Flow`` takes from."""

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
"""By the name of their pool."""


def _loaded(task: Task) -> StagedModel:
    model = load(task.model, device=task.device, dtype=task.dtype, engine=task.engine)
    if model.fingerprint != task.fingerprint:
        raise CheckpointError(
            task.model,
            found=f"another model on {os.uname().nodename} (fingerprint {model.fingerprint[:16]})",
            expected=f"the same on every machine ({task.fingerprint[:16]})",
        )
    return model
