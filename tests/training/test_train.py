"""Training at the smallest size: rows, losses, an interrupted run, the checkpoint folder."""

from __future__ import annotations

import json

import pytest
import torch

import unfuse
from training import scenes, train
from training.architecture import TOWER, write_layout
from training.learner import Learner
from training.turns import Steps, _mirrored
from unfuse.models.eventgpt import EventGPTForConditionalGeneration
from unfuse.samples.demo import demo_checkpoint, tokenizer_model
from unfuse.samples.demo.scenes import demo_scene

CPU = torch.device("cpu")
RECIPE = train.Recipe(scenes=4, steps=4, scenes_a_step=2, warm_up=1)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(train, "HELD_OUT", 2)
    monkeypatch.setattr(train, "_STATE_EVERY", 2)
    monkeypatch.setattr(train, "_LOG_EVERY", 1)
    monkeypatch.setattr(scenes, "_PART", 2)


def steps(checkpoint):
    return Steps(checkpoint, range(4), scenes=2, length=320, steps=4, seed=0)


def test_a_row_of_turns_is_each_turn_alone(tmp_path):
    checkpoint = write_layout(tmp_path, tokenizer_model())
    batch = steps(checkpoint)[0]
    settings = json.loads((tmp_path / TOWER / "preprocessor_config.json").read_text())
    torch.manual_seed(0)
    learner = Learner(checkpoint, settings)
    with torch.no_grad():
        features = learner.features(torch.randint(0, 255, (2, 5, 3, 112, 112), dtype=torch.uint8))
        together = learner.logits(features, batch)
        for row in range(2):
            turn, ids = batch["turn"][row], batch["input_ids"][row]
            assert int(turn.max()) > 3
            for number in range(1, int(turn.max())):
                alone = torch.cat([ids[turn == 0], ids[turn == number]])[None]
                logits = learner.model(input_ids=alone, event_features=features[row : row + 1]).logits[0]
                torch.testing.assert_close(
                    together[row][turn == number], logits[int((turn == 0).sum()) :], atol=2e-6, rtol=1e-5
                )


def test_steps_repeat_and_differ(tmp_path):
    data = steps(write_layout(tmp_path, tokenizer_model()))
    assert all(torch.equal(value, data[1][name]) for name, value in data[1].items())
    assert not torch.equal(data[0]["input_ids"], data[1]["input_ids"])
    answered = data[0]["labels"] != -100
    assert torch.equal(data[0]["labels"][answered], data[0]["input_ids"][answered])


def test_a_mirror_exchanges_left_and_right():
    for seed in range(50):
        facts = demo_scene(seed)[1]
        assert _mirrored(_mirrored(facts)) == facts
        if "left" in {m.direction for m in facts.movers}:
            assert _mirrored(facts) != facts


def test_interrupted_training_is_resumed(tmp_path, quick, monkeypatch):
    data = tmp_path / "scenes"  # simulated once for all three
    whole = train.train(tmp_path / "whole", RECIPE, CPU, workers=0, data=data)
    save = train.Trainer._save

    def interrupt(trainer, step):
        save(trainer, step)
        raise KeyboardInterrupt

    monkeypatch.setattr(train.Trainer, "_save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train.train(tmp_path / "interrupted", RECIPE, CPU, workers=0, data=data)
    monkeypatch.setattr(train.Trainer, "_save", save)
    again = train.train(tmp_path / "interrupted", RECIPE, CPU, workers=0, data=data)
    one, other = (EventGPTForConditionalGeneration.from_pretrained(p).state_dict() for p in (whole, again))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    log = [json.loads(line) for line in (tmp_path / "interrupted" / "log.jsonl").read_text().splitlines()]
    assert [e["event"] for e in log if e["event"] in {"resumed", "end"}] == ["resumed", "end"]
    losses = [e["language"] for e in log if e["event"] == "step"]
    assert losses[-1] < losses[0]
    files = {path.name for path in demo_checkpoint().iterdir()} - {"README.md"}
    assert {path.name for path in again.iterdir()} == files
    assert (again / "config.json").read_text() == (demo_checkpoint() / "config.json").read_text()
    with unfuse.load(str(again), device="cpu") as model:
        assert model.dtype == torch.float32


def test_one_frame_hides_motion(tmp_path):
    checkpoint = write_layout(tmp_path, tokenizer_model())
    settings = json.loads((tmp_path / TOWER / "preprocessor_config.json").read_text())
    learner = Learner(checkpoint, settings, one_frame=True)
    pixels = torch.randint(0, 255, (1, 5, 3, 112, 112), dtype=torch.uint8)
    other = pixels.clone()
    other[:, [0, 1, 3, 4]] = 0
    with torch.no_grad():
        assert torch.equal(learner.features(pixels), learner.features(other))
