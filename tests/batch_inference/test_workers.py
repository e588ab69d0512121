"""Processes that load and preprocess: they die, and no scene is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.started import PATIENCE_S, wait_for
from unfuse import processes
from unfuse.batch_inference import workers
from unfuse.batch_inference.job import scene_source
from unfuse.batch_inference.scenes import failed_scene, prepare, questions_of, scenes_of
from unfuse.batch_inference.workers import WorkerHost, WorkerProcess, WorkerSettings, open_pool
from unfuse.errors import CheckpointError, DeviceError
from unfuse.samples import Question
from unfuse.samples.demo import demo_dataset
from unfuse.unavailable import Unavailable


class Crash:
    """Replaces a sample's reference answer, as nothing reads it: a worker that unpickles it dies."""

    def __init__(self, code):
        self.code = code

    def __reduce__(self):
        return exec, (self.code,)


KILLED = Crash("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
SEGFAULT = Crash("import ctypes; ctypes.string_at(0)")


def killed_once(path):
    return Crash(f"import os, pathlib\np = pathlib.Path({str(path)!r})\nif not p.exists(): p.touch(); os._exit(9)")


@pytest.fixture(scope="module")
def host():
    with WorkerHost("demo", "float32") as made:
        yield made


def demo_scenes(count=4):
    return scenes_of(questions_of(demo_dataset(max_samples=count).samples))


def taken(pool, scenes):
    found = {}
    with pool:
        pool.start(scene_source(scenes))
        while (prepared := pool.take(wait_s=None)) is not None:
            for question, prompt in zip(prepared.questions, prepared.prompts, strict=True):
                assert question.question_id not in found
                found[question.question_id] = prompt
    assert pool.ended
    return found


def test_processes_prepare_what_this_process_prepares(demo_model, host):
    scenes = demo_scenes()
    found = taken(open_pool(demo_model.adapter.preprocessor, host, 2, room=2), scenes)
    assert set(found) == {f"demo:{i}" for i in range(4)}
    for scene in scenes:
        own = prepare(demo_model.adapter.preprocessor, scene).prompts[0]
        assert torch.equal(found[scene.questions[0].question_id].pixel_values, own.pixel_values)
        assert found[scene.questions[0].question_id].token_ids == own.token_ids


@pytest.mark.parametrize("crash", [KILLED, SEGFAULT], ids=["killed", "segfault"])
def test_a_scene_that_kills_two_workers_fails_alone(demo_model, host, crash):
    scenes = demo_scenes()
    scenes[1] = replace(scenes[1], sample=replace(scenes[1].sample, reference=crash))
    pool = open_pool(demo_model.adapter.preprocessor, host, 2, room=2)
    found = taken(pool, scenes)
    assert found.pop("demo:1").reason == "its worker process died of it 2 times"
    assert len(found) == 3
    assert not any(isinstance(prompt, Unavailable) for prompt in found.values())
    assert pool.deaths == 2


def test_a_scene_that_hangs_fails_alone(demo_model, host, monkeypatch):
    """Its worker is killed, even if it ignores messages. Other scenes are not limited by its time."""
    pids, prepared = [], WorkerProcess.__call__

    def limited(self, scene):
        if scene.questions[0].question_id != "demo:1":
            return prepared(self, scene)
        self.close()
        self._channel = self._forked()
        self._channel.limit_silence(5.5)
        pids.append(self._pid)
        patient, self._settings = self._settings, WorkerSettings(scene_seconds=5.5)
        try:
            return prepared(self, scene)
        finally:
            self._settings = patient

    monkeypatch.setattr(WorkerProcess, "__call__", limited)
    scenes = demo_scenes()
    hangs = Crash("import time; time.sleep(100_000)")
    scenes[1] = replace(scenes[1], sample=replace(scenes[1].sample, reference=hangs))
    pool = open_pool(
        demo_model.adapter.preprocessor, host, 2, room=2, settings=WorkerSettings(scene_seconds=PATIENCE_S)
    )
    found = taken(pool, scenes)
    assert found.pop("demo:1").reason == "it took longer than 5.5 s to load and preprocess (--scene-seconds)"
    assert len(found) == 3
    assert not any(isinstance(prompt, Unavailable) for prompt in found.values())
    assert pool.deaths == 1
    wait_for(lambda: not Path(f"/proc/{pids[0]}").exists())


def test_a_worker_that_dies_once_costs_nothing(demo_model, host, tmp_path):
    scenes = demo_scenes()
    scenes[2] = replace(scenes[2], sample=replace(scenes[2].sample, reference=killed_once(tmp_path / "died")))
    pool = open_pool(demo_model.adapter.preprocessor, host, 1, room=2)
    found = taken(pool, scenes)
    assert not any(isinstance(prompt, Unavailable) for prompt in found.values())
    assert (len(found), pool.deaths) == (4, 1)


def test_a_worker_gets_the_exit_code_of_its_decoder(host, tmp_path):
    status = tmp_path / "status"
    code = (
        "import pathlib, subprocess, sys\n"
        "ended = subprocess.run([sys.executable, '-S', '-c', 'import os; os.kill(os.getpid(), 9)'])\n"
        f"pathlib.Path({str(status)!r}).write_text(str(ended.returncode))"
    )
    scene = demo_scenes(1)[0]
    worker = WorkerProcess(host)
    worker(replace(scene, sample=replace(scene.sample, reference=Crash(code))))
    worker.close()
    assert status.read_text() == "-9"


def test_a_host_that_was_killed_is_started_again(host, demo_model):
    worker = WorkerProcess(host)
    scene = demo_scenes(1)[0]
    assert not isinstance(worker(scene).prompts[0], Unavailable)
    os.kill(host._child.pid, signal.SIGKILL)
    host._child.wait(PATIENCE_S)
    assert not isinstance(worker(scene).prompts[0], Unavailable), "the worker has outlived it"
    other = WorkerProcess(host)
    assert not isinstance(other(scene).prompts[0], Unavailable)
    worker.close()
    other.close()


def test_a_model_without_a_preprocessor(tmp_path):
    with WorkerHost(str(tmp_path), "float32") as host, pytest.raises(CheckpointError, match=r"no config\.json"):
        host.worker()


def test_a_process_that_does_not_start(monkeypatch, tmp_path):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no such module\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(processes, "subprocess", subprocess)
    with WorkerHost("demo", "float32") as host, pytest.raises(DeviceError, match=r"no such module.*--workers 0"):
        host.worker()


def test_workers_by_default():
    assert workers.default_workers(torch.device("cpu")) == 0
    assert 1 <= workers.default_workers(torch.device("cuda")) <= 16
    assert workers.default_workers(torch.device("cuda"), 1000) == 1


def test_a_failed_scene_has_a_reason_for_every_question():
    questions = tuple(Question(question_id=str(i), text="?") for i in range(3))
    assert failed_scene(questions, "why").prompts == (Unavailable("why"),) * 3
