"""Answers of datasets, in a folder: each sample once, after any interruption."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from jsonschema import Draft202012Validator

import unfuse
from unfuse.batch_inference.job import RunJob, RunSettings, Work, answer_dataset
from unfuse.batch_inference.times import bottleneck
from unfuse.engines.fused_only import FusedOnly
from unfuse.errors import CutError, DatasetError, FileAccessError, InputError, RunFolderError
from unfuse.records import RunFolder, read_manifest
from unfuse.records.answers_file import read_answers
from unfuse.report.schemas import schemas
from unfuse.samples import Dataset
from unfuse.samples.demo import demo_dataset
from unfuse.scheduler import Scheduler
from unfuse.testing import FakeTime

SETTINGS = RunSettings(max_new_tokens=8, workers=0)
ACCIDENTAL = {"finished_unix_s": 0.0, "reused_prefix_tokens": 0}
"""Fields that depend on the time and order of the answers."""


def by_id(folder):
    return sorted((replace(each, **ACCIDENTAL) for each in read_answers(folder / "answers.jsonl")), key=str)


@pytest.fixture(scope="module")
def undisturbed(demo_model, demo_work, tmp_path_factory):
    return answer_dataset(
        RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=tmp_path_factory.mktemp("run") / "answers")
    )


def test_a_run_leaves_every_answer(undisturbed, demo_work, expected):
    answers = {each.sample_id: each for each in undisturbed.answers()}
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        own = expected[name]
        assert (answer.status, answer.text, answer.token_ids) == ("ok", own.text, own.token_ids)
        assert (answer.stop_reason, answer.prompt_tokens, answer.output_tokens) == (
            own.stop_reason, own.prompt_tokens, own.output_tokens,
        )  # fmt: skip
        assert len(answer.media_sha256) == 64
        assert abs(answer.finished_unix_s - time.time()) < 3600
    assert {each.question for each in answers.values()} == {question.text for _, question in demo_work.rows}


def test_summary_and_manifest_of_a_run(undisturbed, demo_model):
    summary = undisturbed.summary()
    assert (summary.samples, summary.ok, summary.failed, summary.earlier, summary.scenes) == (12, 12, 0, 0, 4)
    assert summary.output_tokens == sum(len(each.token_ids) for each in undisturbed.answers())
    times = summary.times
    assert summary.samples_per_s == pytest.approx(12 / times.wall_s)
    busy = times.encode_s + times.prefill_s + times.decode_s
    assert 0 < busy <= times.wall_s
    assert 0 < times.device_busy <= 1
    assert busy + times.scene_wait_s <= times.wall_s
    written = json.loads((undisturbed.folder / "summary.json").read_text())
    Draft202012Validator(schemas()["answers-summary"]).validate(written)
    for line in (undisturbed.folder / "answers.jsonl").read_text().splitlines():
        Draft202012Validator(schemas()["answers"]).validate(json.loads(line))
    Draft202012Validator(schemas()["run"]).validate(json.loads((undisturbed.folder / "run.json").read_text()))
    stage = bottleneck(times).stage
    assert written["bottleneck"]["stage"] == stage
    assert written["times"]["decode_s"] == times.decode_s
    lines = summary.lines()
    assert lines[0] == "Samples: 12 ok, 0 failed."
    assert sum(line.startswith(f"Bottleneck: {stage} (") for line in lines) == 1
    manifest = read_manifest(undisturbed.folder)
    assert manifest.protocol == "answers"
    assert manifest.model["fingerprint"] == demo_model.fingerprint
    assert manifest.dataset["num_samples"] == 12


def test_the_times_of_a_run_are_those_of_its_parts(demo_model, demo_work, tmp_path, monkeypatch):
    """On a clock that only the model advances, the device is the bottleneck, and is busy all the time."""
    clock = FakeTime()
    fake = SimpleNamespace(perf_counter=clock.perf_counter, time=time.time)
    for module in ("job", "flow", "device", "times"):
        monkeypatch.setattr(f"unfuse.batch_inference.{module}.time", fake)
    monkeypatch.setattr("unfuse.engines.sequential.time", fake)
    engine = demo_model.engine
    prefill, encode_batch = engine.prefill, demo_model.adapter.encode_batch

    def slow_prefill(*given, **named):
        clock.sleep(2)
        return prefill(*given, **named)

    def slow_encode(*given, **named):
        clock.sleep(1)
        return encode_batch(*given, **named)

    monkeypatch.setattr(engine, "prefill", slow_prefill)
    monkeypatch.setattr(demo_model.adapter, "encode_batch", slow_encode)
    summary = answer_dataset(
        RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=tmp_path / "run")
    ).summary()
    times = summary.times
    assert times.prefill_s == 2 * 12
    assert times.encode_s == times.wall_s - times.prefill_s > 0
    assert times.device_busy == 1
    assert sum(line.startswith("Bottleneck: Stage 4 (device busy 100%") for line in summary.lines()) == 1


def test_a_folder_of_answers_is_no_benchmark(undisturbed):
    with pytest.raises(RunFolderError, match="found answers of unfuse run, expected a run of unfuse bench"):
        RunFolder.open(undisturbed.folder)


def test_a_run_that_has_ended_is_left_as_it_is(undisturbed, demo_model, demo_work):
    before = {path.name: path.read_bytes() for path in undisturbed.folder.iterdir() if path.name != "run.json"}
    with pytest.raises(RunFolderError, match="--resume"):
        answer_dataset(RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=undisturbed.folder))
    again = answer_dataset(
        RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=undisturbed.folder, resume=True)
    )
    assert (again.summary().ok, again.summary().earlier, again.summary().answered) == (12, 12, 0)
    assert "Nothing was left to do." in again.summary().lines()
    assert before == {path.name: path.read_bytes() for path in undisturbed.folder.iterdir() if path.name != "run.json"}


@pytest.mark.parametrize("changes", [{"max_new_tokens": 9}, {"temperature": 0.5}, {"seed": 3}, {"output_length": 4}])
def test_another_run_is_not_continued(undisturbed, demo_model, demo_work, changes):
    with pytest.raises(RunFolderError, match=next(iter(changes))):
        answer_dataset(
            RunJob(
                model=demo_model,
                work=demo_work,
                settings=replace(SETTINGS, **changes),
                output=undisturbed.folder,
                resume=True,
            )
        )


def test_other_questions_are_not_continued(undisturbed, demo_model):
    with pytest.raises(RunFolderError, match="row 'demo:0#1': recorded, now missing"):
        answer_dataset(
            RunJob(
                model=demo_model,
                work=Work(demo_dataset(max_samples=4)),
                settings=SETTINGS,
                output=undisturbed.folder,
                resume=True,
            )
        )


@pytest.fixture(scope="module")
def partly_answered(demo_model, tmp_path_factory):
    """A run over recordings of its own, with an answer to the first of two."""
    folder = tmp_path_factory.mktemp("inputs")
    samples = []
    for sample in demo_dataset(max_samples=2).samples:
        path = folder / sample.event_data.name
        path.write_bytes(sample.event_data.read_bytes())
        samples.append(replace(sample, event_data=path))
    work = Work(Dataset(name="two", samples=tuple(samples)))
    answer_dataset(RunJob(model=demo_model, work=work, settings=SETTINGS, output=folder / "run"))
    answers = folder / "run" / "answers.jsonl"
    answers.write_text("".join(line for line in answers.read_text().splitlines(True) if '"demo:0"' in line))
    return folder, samples


def resumed(model, folder, samples, output):
    shutil.copytree(folder / "run", output)
    work = Work(Dataset(name="two", samples=tuple(samples)))
    return answer_dataset(RunJob(model=model, work=work, settings=SETTINGS, output=output, resume=True))


@contextmanager
def flipped_bit(path):
    """Change a file and not its size or time."""
    data, before = path.read_bytes(), path.stat()
    path.write_bytes(data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    yield
    path.write_bytes(data)


def test_changed_media_of_an_answer_are_refused(partly_answered, demo_model, tmp_path):
    folder, samples = partly_answered
    path = samples[0].event_data
    with (
        flipped_bit(path),
        pytest.raises(RunFolderError, match=rf"\(media of 'demo:0' \({path}\): recorded sha256 \w+"),
    ):
        resumed(demo_model, folder, samples, tmp_path / "run")
    assert resumed(demo_model, folder, samples, tmp_path / "again").summary().earlier == 1


def test_a_changed_question_of_an_answer_is_refused(partly_answered, demo_model, tmp_path):
    folder, samples = partly_answered
    other = [replace(samples[0], question="Which way?"), samples[1]]
    with pytest.raises(RunFolderError, match=r"\(question of 'demo:0': recorded '.+', now 'Which way\?'\)"):
        resumed(demo_model, folder, other, tmp_path / "run")
    for changed in ([samples[0]], [samples[0], replace(samples[1], question="Which way?")]):
        with pytest.raises(RunFolderError, match="dataset"):
            resumed(demo_model, folder, changed, tmp_path / f"run {len(changed)}")


def test_media_without_an_answer_may_change(partly_answered, demo_model, tmp_path):
    """Their answer will have the hash of what they hold now."""
    folder, samples = partly_answered
    with flipped_bit(samples[1].event_data):
        assert resumed(demo_model, folder, samples, tmp_path / "run").summary().ok == 2


@pytest.mark.parametrize("name", ["fingerprint", "settings_sha256"])
def test_another_model_is_refused_by_name(partly_answered, demo_model, tmp_path, monkeypatch, name):
    folder, samples = partly_answered
    owner = demo_model.adapter if name == "fingerprint" else demo_model
    monkeypatch.setattr(owner, name, "f" * 64)
    with pytest.raises(RunFolderError, match=f"model.{name}: recorded .*, now .*ffff"):
        resumed(demo_model, folder, samples, tmp_path / "run")


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("after", [1, 5, 11])
def test_a_run_that_was_interrupted_goes_on(undisturbed, demo_model, demo_work, tmp_path, after, monkeypatch):
    step, ended = Scheduler.step, []

    def interrupted(scheduler):
        for scheduled in step(scheduler):
            yield scheduled
            ended.append(scheduled.generation is not None)
            if sum(ended) == after:
                raise _StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "step", interrupted)
        with pytest.raises(_StoppedError):
            answer_dataset(RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=tmp_path / "run"))
    assert len(by_id(tmp_path / "run")) == after
    wider = replace(SETTINGS, capacity=3, encode_batch=2)
    summary = answer_dataset(
        RunJob(model=demo_model, work=demo_work, settings=wider, output=tmp_path / "run", resume=True)
    ).summary()
    assert (summary.ok, summary.earlier) == (12, after)
    assert by_id(tmp_path / "run") == by_id(undisturbed.folder)


def test_a_run_that_fails_before_its_start_leaves_nothing(demo_model, demo_work, tmp_path):
    def refuse(facts, left):
        raise _StoppedError

    with pytest.raises(_StoppedError):
        answer_dataset(
            RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=tmp_path / "a" / "run"), on_ready=refuse
        )
    assert not (tmp_path / "a").exists()


def test_a_failed_sample_is_counted_and_tried_again_when_the_run_goes_on(demo_model, tmp_path):
    samples = demo_dataset(max_samples=3).samples
    (tmp_path / "bad.npy").write_bytes(b"no events")
    work = Work(
        Dataset(name="three", samples=(samples[0], replace(samples[1], event_data=tmp_path / "bad.npy"), samples[2]))
    )
    heard = []
    run = answer_dataset(
        RunJob(model=demo_model, work=work, settings=SETTINGS, output=tmp_path / "run"), on_answer=heard.append
    )
    assert (run.summary().ok, run.summary().failed) == (2, 1)
    assert sorted(each.sample_id for each in heard) == ["demo:0", "demo:1", "demo:2"]
    (failed,) = (each for each in run.answers() if each.status == "failed")
    assert "bad.npy" in failed.error
    assert failed.token_ids is failed.text is None
    again = answer_dataset(
        RunJob(model=demo_model, work=work, settings=SETTINGS, output=tmp_path / "run", resume=True)
    ).summary()
    assert (again.ok, again.failed, again.earlier, again.retried, again.answered) == (2, 1, 2, 1, 1)
    assert "Tried again: 1 sample that had failed." in again.lines()
    (tmp_path / "bad.npy").write_bytes(samples[1].event_data.read_bytes())
    mended = answer_dataset(
        RunJob(model=demo_model, work=Work(work.dataset), settings=SETTINGS, output=tmp_path / "run", resume=True)
    )
    assert (mended.summary().ok, mended.summary().failed, mended.summary().retried) == (3, 0, 1)
    assert sorted((each.sample_id, each.status) for each in mended.answers()) == [(f"demo:{i}", "ok") for i in range(3)]
    (tmp_path / "bad.npy").write_bytes(b"something else")
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    with pytest.raises(RunFolderError, match=r"media of 'demo:1' \(.*bad\.npy\): recorded sha256 \w{16}, now \w{16}\)"):
        answer_dataset(
            RunJob(model=demo_model, work=Work(work.dataset), settings=SETTINGS, output=tmp_path / "run", resume=True)
        )
    assert before == {path.name: path.read_bytes() for path in run.folder.iterdir()}


def test_a_recording_that_vanishes_while_the_model_loads_fails_alone(demo_model, tmp_path):
    samples = demo_dataset(max_samples=2).samples
    (tmp_path / "soon gone.npy").write_bytes(samples[1].event_data.read_bytes())
    work = Work(Dataset(name="two", samples=(samples[0], replace(samples[1], event_data=tmp_path / "soon gone.npy"))))
    (tmp_path / "soon gone.npy").unlink()
    run = answer_dataset(RunJob(model=demo_model, work=work, settings=SETTINGS, output=tmp_path / "run"))
    assert {each.sample_id: each.status for each in run.answers()} == {"demo:0": "ok", "demo:1": "failed"}
    with pytest.raises(FileAccessError, match=r"soon gone\.npy: found no such file"):
        Work(work.dataset)


def test_worker_processes_give_the_same_answers(undisturbed, demo_work, tmp_path):
    run = unfuse.run(
        "demo", demo_work.dataset, questions=[question.text for _, question in demo_work.rows[:3]], device="cpu",
        output=tmp_path / "run", max_new_tokens=8, workers=1,
    )  # fmt: skip
    assert by_id(run.folder) == by_id(undisturbed.folder)


def test_wrong_input_is_refused_before_a_model_is_loaded(tmp_path, demo_work, monkeypatch):
    monkeypatch.setattr("unfuse.batch_inference.device.load", None)
    sample = demo_work.dataset.samples[0]
    with pytest.raises(FileAccessError, match=r"gone\.npy"):
        unfuse.run("demo", Dataset(name="d", samples=(replace(sample, event_data=tmp_path / "gone.npy"),)))
    with pytest.raises(DatasetError, match="twice"):
        unfuse.run("demo", Dataset(name="d", samples=(sample, sample)))
    for settings in ({"max_new_tokens": 0}, {"capacity": 0}, {"encode_batch": 0}, {"workers": -1}, {"questions": []}):
        with pytest.raises(InputError, match="at least"):
            unfuse.run("demo", **settings)
    for seconds in (0, -1, 1e-9, float("nan"), float("inf")):
        with pytest.raises(InputError, match="scene-seconds: found .*, expected 1 to 86400"):
            unfuse.run("demo", scene_seconds=seconds)
    with pytest.raises(InputError, match="scene-seconds: found ray beside it"):
        unfuse.run("demo", ray="local", scene_seconds=5)
    with pytest.raises(InputError, match="found no output"):
        unfuse.run("demo", resume=True)
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").touch()
    with pytest.raises(RunFolderError, match="no run"):
        unfuse.run("demo", output=tmp_path / "files")


def test_an_unsplittable_model_is_refused(demo_model, demo_work, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "engine", FusedOnly("it cannot be split"))
    with pytest.raises(CutError, match="cannot be split"):
        answer_dataset(RunJob(model=demo_model, work=demo_work, settings=SETTINGS, output=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
