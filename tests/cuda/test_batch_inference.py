"""``unfuse run`` on a GPU: workers, pinned memory, captured steps. Skipped, and listed as such, elsewhere."""

from __future__ import annotations

import pytest
import torch

import unfuse
from unfuse.batch_inference.times import Stopwatch
from unfuse.samples.demo import demo_dataset

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

QUESTIONS = ["What moves?", "Is it raining?"]


def test_answers_are_the_models_own(tmp_path):
    with unfuse.load("demo", device="cuda", dtype="float32") as model:
        alone = {}
        for sample in demo_dataset().samples:
            features = model.encode(sample)
            for number, question in enumerate(QUESTIONS, start=1):
                answer = model.generate(question, features, max_new_tokens=16, reuse=False)
                alone[f"{sample.sample_id}#{number}"] = answer.token_ids
        for name, settings in {
            "workers": {"workers": 2},
            "few": {"workers": 0, "capacity": 3, "encode_batch": 2},
        }.items():
            run = unfuse.run(
                model,
                questions=QUESTIONS,
                output=tmp_path / name,
                max_new_tokens=16,
                store=tmp_path / "store",
                **settings,
            )
            assert {each.sample_id: each.token_ids for each in run.answers()} == alone
            times = run.summary().times
            assert 0 < times.prefill_s + times.decode_s <= times.wall_s
            assert (times.encode_s > 0) == (name == "workers"), "the second run finds every scene in the store"


def test_two_processes_on_the_available_gpus(tmp_path):
    several = ",".join(f"cuda:{i % torch.cuda.device_count()}" for i in range(2))
    run = unfuse.run("demo", devices=several, output=tmp_path / "run", max_new_tokens=8, workers=1)
    assert (run.summary().ok, run.summary().times.devices, run.summary().device_deaths) == (8, 2, ())


def test_a_stopwatch_reads_the_devices_clock():
    watch = Stopwatch(torch.device("cuda"))
    with watch.running():
        torch.cuda._sleep(30_000_000)
    assert watch.seconds() > 0.005
