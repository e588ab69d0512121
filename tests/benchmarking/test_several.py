"""Several models on the same samples: one at a time, and no record lost however the process ends."""

from __future__ import annotations

import gc
import json
import random
import time
import weakref

import pytest

import unfuse
from tests import started
from unfuse.api.benchmarking import EQUAL_TOKENS, plan_bench
from unfuse.benchmarking import BenchSettings, ComparisonRun, ModelSource, RunOptions, bench_several
from unfuse.errors import DeviceError, InputError, RunFolderError
from unfuse.loading import Placement, load
from unfuse.samples.demo import demo_dataset

MODELS = ["demo", "random:llava-tiny", "random:video-llava-tiny"]
PROTOCOLS = ["decoupled", "hooked"]
AUTO = Placement()
QUICK = BenchSettings(max_new_tokens=8, output_length=3, num_warmups=1, noise_repeats=1, balance_seconds=0.0)


@pytest.fixture(scope="module")
def data():
    return demo_dataset(max_samples=3)


def load_cpu(name):
    return load(name, device="cpu")


def compare(models, protocols, data, settings=QUICK, *, load=load_cpu, placement=AUTO, **options):
    source = ModelSource(names=tuple(models), load=load, placement=placement)
    return bench_several(source, protocols, data, settings, RunOptions(**options))


def lines(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several") / "all"
    run = compare(MODELS, PROTOCOLS, data, output=folder)
    return run, folder


def test_every_model_on_the_same_samples_with_the_same_length(finished):
    run, folder = finished
    assert [(part.model, part.protocol) for part in run.result.parts] == [
        (model, protocol) for model in MODELS for protocol in ("decoupled", "hooked")
    ]
    for part in run.result.parts:
        assert [record.sample_id for record in part.measured] == ["demo:0", "demo:1", "demo:2"]
        assert {record.output_tokens for record in part.measured} == {3}
    assert sorted(p.name for p in folder.iterdir()) == [
        ".lock", "01-demo-decoupled", "02-demo-hooked", "03-random-llava-tiny-decoupled", "04-random-llava-tiny-hooked",
        "05-random-video-llava-tiny-decoupled", "06-random-video-llava-tiny-hooked", "comparison.json", "frames",
        "report.html", "report.md", "summary.json",
    ]  # fmt: skip


def test_the_report_names_unfair_differences(finished):
    run, folder = finished
    differences = {d.what: d.values for d in run.summary().differences}
    assert differences["frames"] == {"demo": "5", "random:llava-tiny": "1", "random:video-llava-tiny": "8"}
    assert {"pixels into the tower", "text tokens of the prompt", "vision tokens of the prompt"} <= set(differences)
    assert "output tokens" not in differences, "those are equal"
    text = (folder / "report.md").read_text()
    for word in ("ratio of medians", "what each protocol would have claimed", "Memory of each stage", "vision tokens"):
        assert word in text
    assert "this model was shown event frames" in text


def test_one_model_is_loaded_at_a_time(data):
    alive: list[weakref.ref] = []
    most = []

    def counted(name):
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        model = load_cpu(name)
        alive.append(weakref.ref(model.adapter.model))
        return model

    compare(MODELS, ["fused"], data, load=counted)
    assert most == [0, 0, 0], "the one before is gone when the next is loaded"


def test_a_later_failure_keeps_finished_parts(data, tmp_path):
    def fails(name):
        if "llava" in name:
            raise DeviceError(name, found="1 GiB free", expected="14 GiB")
        return load_cpu(name)

    run = compare(MODELS[:2], ["decoupled"], data, load=fails, output=tmp_path / "all")
    first, second = run.result.parts
    assert first.summary.num_ok == 3
    assert second.summary is None
    assert "1 GiB free" in second.error
    assert not run.result.valid
    assert "NOT RUN" in (tmp_path / "all" / "report.md").read_text()
    entries = json.loads((tmp_path / "all" / "comparison.json").read_text())["parts"]
    assert [entry["status"] for entry in entries] == ["ended", "failed"]
    before = (tmp_path / "all" / "01-demo-decoupled" / "samples.jsonl").read_bytes()
    again = compare(MODELS[:2], ["decoupled"], data, output=tmp_path / "all", resume=True)
    assert (tmp_path / "all" / "01-demo-decoupled" / "samples.jsonl").read_bytes() == before
    assert [part.summary.num_ok for part in again.result.parts] == [3, 3]


def test_resuming_something_else_is_refused(finished, data):
    _, folder = finished
    with pytest.raises(RunFolderError, match="the same models and protocols"):
        compare(MODELS[:2], ["decoupled"], data, output=folder, resume=True)
    other = BenchSettings(max_new_tokens=9, output_length=3, num_warmups=1, noise_repeats=1, balance_seconds=0.0)
    with pytest.raises(RunFolderError, match="options: recorded .* now"):
        compare(MODELS, PROTOCOLS, data, other, output=folder, resume=True)
    placement = Placement("cpu", "float32", "eager")
    with pytest.raises(RunFolderError, match="placement: recorded .* now .*float32"):
        compare(MODELS, PROTOCOLS, data, placement=placement, output=folder, resume=True)
    with pytest.raises(RunFolderError, match="dataset: recorded"):
        compare(MODELS, PROTOCOLS, demo_dataset(max_samples=2), output=folder, resume=True)
    with pytest.raises(RunFolderError):
        compare(MODELS, ["decoupled"], data, output=folder)


COMMAND = [
    "bench", MODELS[0], "--protocol", "all", "--max-samples", "2", "--output-length", "3", "--num-warmups", "1",
    "--balance-seconds", "0", "--device", "cpu",
]  # fmt: skip


def started_parts(folder):
    """Parts whose samples are being recorded."""
    return sum((part / "samples.jsonl").exists() for part in folder.glob("0*"))


def test_killed_at_any_moment_and_resumed(tmp_path):
    """``kill -9`` at random moments: no sample is lost or repeated, and the whole is as if never interrupted."""
    folder = tmp_path / "all"
    rng = random.Random(7)
    reported: dict[str, list[str]] = {}
    arguments = [*COMMAND, "--output", str(folder)]
    for _ in range(3):
        resume = ["--resume"] if (folder / "comparison.json").exists() else []
        process = started.unfuse(*arguments, *resume, folder=tmp_path)
        more = started_parts(folder) + rng.randrange(1, 3)
        process.wait_until(lambda more=more: started_parts(folder) >= more)
        time.sleep(rng.uniform(0, 0.5))  # anywhere in a part
        process.kill()
        for part in sorted(folder.glob("0*")) if folder.exists() else []:
            now = (part / "samples.jsonl").read_text().split("\n")[:-1]
            before = reported.get(part.name, [])
            assert now[: len(before)] == before, "a reported line changed"
            reported[part.name] = now
    resume = ["--resume"] if (folder / "comparison.json").exists() else []
    last = started.unfuse(*arguments, *resume, folder=tmp_path)
    assert last.wait() in (0, 1), last.errors
    parts = sorted(p for p in folder.iterdir() if p.is_dir() and p.name != "frames")
    assert len(parts) == 4
    for part in parts:
        stored = (part / "samples.jsonl").read_text().split("\n")[:-1]
        before = reported.get(part.name, [])
        assert stored[: len(before)] == before
        ids = [line["sample_id"] for line in lines(part) if not line["warmup"]]
        assert ids == ["demo:0", "demo:1"], "each sample once"
    plain = unfuse.bench(
        MODELS[:1], max_samples=2, protocol="all", device="cpu", output_length=3, num_warmups=1, balance_seconds=0.0
    )
    assert isinstance(plain, ComparisonRun)
    for part, whole in zip(parts, plain.result.parts, strict=True):
        ours = [(r["sample_id"], r["token_ids"], r["media_sha256"]) for r in lines(part) if not r["warmup"]]
        theirs = [(r.sample_id, list(r.token_ids), r.media_sha256) for r in whole.measured]
        assert ours == theirs
        summary = json.loads((part / "summary.json").read_text())
        assert summary["num_ok"] == whole.summary.num_ok
        assert summary["stages_host"].keys() == whole.summary.stages_host.keys()


def test_saved_from_memory(finished, tmp_path):
    run, folder = finished
    run.save(tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} == {p.name for p in folder.iterdir()}
    frames = [{p.name: p.read_bytes() for p in (each / "frames").iterdir()} for each in (folder, tmp_path / "copy")]
    assert frames[0] == frames[1]


def test_plan():
    plan = plan_bench(MODELS, "all")
    assert (plan.events, plan.video, plan.single) == (True, True, False)
    assert plan.settings().output_length == EQUAL_TOKENS, "equal work by default"
    assert plan.settings(max_new_tokens=9).output_length is None
    assert plan_bench(["demo"], "decoupled").single
    assert plan_bench(["random:llava-tiny"], "fused").events is False
    with pytest.raises(InputError, match="decoupled, fused, hooked, reencode or all"):
        plan_bench(["demo"], "psychic")
    with pytest.raises(InputError, match="none"):
        plan_bench([], "all")
