"""A real Ray cluster of this machine: each question is answered exactly once as by ``run``, after any crash.

Starting the actors takes most of the time, so each run checks many properties.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from unfuse.batch_inference.cluster import pipeline
from unfuse.batch_inference.cluster.connection import connected
from unfuse.batch_inference.cluster.settings import RaySettings
from unfuse.batch_inference.device import DeviceJob
from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.errors import CheckpointError, DeviceError, InputError, MissingPackageError
from unfuse.loading import Placement
from unfuse.records import read_manifest
from unfuse.records.answers_file import read_answers
from unfuse.samples import Dataset
from unfuse.samples.demo import demo_dataset
from unfuse.stages import Generation

SETTINGS = RunSettings(max_new_tokens=8)
YES = Generation(token_ids=(3,), text="yes", stop_reason="eos", prompt_tokens=2)
ACCIDENTAL = {"finished_unix_s": 0.0, "reused_prefix_tokens": 0}


def by_id(folder):
    return sorted((replace(each, **ACCIDENTAL) for each in read_answers(folder / "answers.jsonl")), key=str)


@pytest.fixture(scope="module")
def ray():
    """A cluster of two cores, on any machine; runs use this connection."""
    pytest.importorskip("ray")
    before = os.environ.get("PYTHONPATH")
    # Actors get the module path of this process.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    from unfuse.batch_inference.cluster.connection import require_ray

    ray = require_ray()
    ray.init(
        address="local", num_cpus=2, num_gpus=0, include_dashboard=False, log_to_driver=False,
        object_store_memory=128 << 20,
    )  # fmt: skip
    yield ray
    ray.shutdown()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


def test_a_resumed_run_with_a_bad_scene_and_a_killed_actor(ray, demo_model, tmp_path):
    (tmp_path / "bad.npy").write_bytes(b"no events")
    samples = demo_dataset().samples[:8]
    samples = (*samples[:5], replace(samples[5], event_data=tmp_path / "bad.npy"), *samples[6:])
    questions = ["What moves?", "Is it raining?", "why? " * 3000, "Which way does the disc move?"]
    work = Work(Dataset(name="d", samples=samples), questions)
    settings = replace(SETTINGS, output_length=16)
    local_run = answer_dataset(RunJob(model=demo_model, work=work, settings=settings, output=tmp_path / "local"))
    assert (local_run.summary().ok, local_run.summary().failed) == (21, 11)

    shutil.copytree(local_run.folder, tmp_path / "run", ignore=shutil.ignore_patterns("summary.json", "*.lock"))
    lines = (tmp_path / "run" / "answers.jsonl").read_bytes().splitlines(keepends=True)
    stored = [line for line in lines if b'"status": "ok"' in line][:6]
    (tmp_path / "run" / "answers.jsonl").write_bytes(b"".join(stored) + b"torn")
    heard, killed, ready_calls = [], [], []

    def kill(record):
        heard.append(record.sample_id)
        if len(heard) == 1:
            killed.append(kill_actors("AnswerAll"))

    cluster_run = answer_dataset(
        RunJob(
            model="demo",
            work=work,
            settings=replace(settings, encode_batch=1),
            output=tmp_path / "run",
            resume=True,
            ray=RaySettings(),
        ),
        on_answer=kill,
        on_ready=lambda *given: ready_calls.append(given),
    )
    assert killed == [1]
    summary = cluster_run.summary()
    assert (summary.samples, summary.ok, summary.failed, summary.earlier) == (32, 21, 11, 6)
    assert len(heard) == len(set(heard)) == 26
    assert by_id(cluster_run.folder) == by_id(local_run.folder)

    assert summary.worker_deaths >= 1, "it was killed when it had nothing more to say"
    assert [use.stage for use in summary.pools] == ["load", "preprocess", "encode", "answer"]
    assert all(use.actors >= 1 and 0 < use.busy_s <= use.alive_s for use in summary.pools)
    assert summary.times.prefill_s > 0
    assert any(line.startswith("Bottleneck: ") and "actors busy" in line for line in summary.lines())
    one, other = (read_manifest(each.folder) for each in (cluster_run, local_run))
    assert one.model == other.model
    ((facts, left),) = ready_calls
    assert left == 26
    assert facts.environment["ray"]["pools"] == dict.fromkeys(("load", "preprocess", "encode", "answer"), "1")


def kill_actors(name):
    """Kills the actors of one stage; Ray gives its processes titles."""
    killed = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if title.startswith(b"ray::") and f"({name})".encode() in title:
            os.kill(int(folder.name), signal.SIGKILL)
            killed += 1
    return killed


def test_no_such_model_on_the_cluster(ray, demo_work, tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        answer_dataset(
            RunJob(
                model=str(tmp_path / "model"),
                work=demo_work,
                settings=SETTINGS,
                output=tmp_path / "run",
                ray=RaySettings(),
                placement=Placement("cpu"),
            )
        )
    assert not (tmp_path / "run").exists()


def test_lost_scenes_are_tried_one_by_one_and_then_fail(demo_work):
    """Without Ray: the order of streamed scenes, for a stream that loses some answers."""
    scenes = demo_work.scenes()
    lost = {scenes[1].questions[0].question_id, scenes[2].questions[2].question_id}
    tried = []

    def stream(given, *, one_by_one):
        tried.append((one_by_one, [each.question_id for scene in given for each in scene.questions]))
        for scene in given:
            answers = [pipeline.Answer(question=each, generation=YES) for each in scene.questions]
            answered = [a for a in answers if a.question.question_id not in lost]
            yield {}, iter(answered)
            yield {}, iter(answered)  # a task that was run again
        lost.discard(scenes[2].questions[2].question_id)

    broken = pipeline.RayPipeline.__new__(pipeline.RayPipeline)
    broken._stream = stream
    heard = []
    broken.answer(scenes, heard.append)
    assert sorted(each.question.question_id for each in heard) == sorted(
        question.question_id for _, question in demo_work.rows
    )
    assert [one_by_one for one_by_one, _ in tried] == [False, True]
    assert tried[1][1] == [scenes[1].questions[0].question_id, scenes[2].questions[2].question_id]
    (failed,) = (each for each in heard if each.error is not None)
    assert failed.question == scenes[1].questions[0]
    assert "died of it" in failed.error


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r'pip install "unfuse\[ray\]"'), connected("local"):
        pass


def test_no_such_cluster(ray, monkeypatch):
    def refuse(**given):
        raise ConnectionError("Could not find any running Ray instance.\nMore")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    before = signal.getsignal(signal.SIGTERM)
    for address in ("auto", "127.0.0.1:1"):
        with pytest.raises(DeviceError, match="ray start --head"), connected(address):
            pass
    with pytest.raises(DeviceError, match="no cluster can be started here"), connected("local"):
        pass
    assert signal.getsignal(signal.SIGTERM) is before


def test_jobs_that_a_cluster_refuses(demo_model, demo_work, tmp_path):
    with pytest.raises(InputError, match="a model's name"):
        answer_dataset(
            RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=tmp_path / "run", ray=RaySettings())
        )
    job = DeviceJob(model="demo", device="cuda:1", dtype="auto", engine="auto", flow=SETTINGS.flow)
    with pytest.raises(DeviceError, match="Ray says which one"):
        pipeline.RayPipeline(job, RaySettings())


def test_an_actor_has_the_requested_model(demo_model):
    from unfuse.batch_inference.cluster import stages

    task = stages.Task(
        model="demo", device="cpu", dtype="float32", engine="eager", fingerprint="another", flow=SETTINGS.flow
    )
    with pytest.raises(CheckpointError, match="another model on"):
        stages.Encode(task)
    assert stages._loaded(replace(task, fingerprint=demo_model.fingerprint)).fingerprint == demo_model.fingerprint


def test_costs_are_the_last_report_of_each_process():
    costs = pipeline._Costs()
    own = SimpleNamespace(a={"actor": "a", "process": 1}, b={"actor": "a", "process": 2})
    costs.add({"load": {**own.a, "alive_s": 4.0, "busy_s": {"load": 2.0}}})
    costs.add({"load": {**own.a, "alive_s": 2.0, "busy_s": {"load": 1.0}}})
    costs.add({"load": {**own.b, "alive_s": 1.0, "busy_s": {"load": 1.0}}})
    costs.add({"answer": {**own.a, "alive_s": 9.0, "busy_s": {"prefill": 1.0, "decode": 5.0}}})
    assert costs.restarts == 1
    load, _, encode, answer = costs.pools()
    assert (load.actors, load.busy_s, load.alive_s, load.busy) == (2, 3.0, 5.0, 0.6)
    assert (encode.actors, encode.busy) == (0, 0.0)
    assert answer.busy_s == 6.0
    times = costs.times(10.0)
    assert (times.load_s, times.prefill_s, times.decode_s, times.workers, times.devices) == (3.0, 1.0, 5.0, 2, 1)
