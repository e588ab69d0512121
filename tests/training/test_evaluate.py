"""Answers of the shipped model about unseen scenes, in every way that it can be run.

Small enough for every change; the model card has the same on more scenes.
"""

from __future__ import annotations

import pytest
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor

import unfuse.models.eventgpt  # noqa: F401, registers the family
from tests.forked import fork_pools
from training import evaluate
from unfuse.events import event_frames, read_events
from unfuse.report.quality import proportion
from unfuse.samples.demo import demo_checkpoint, demo_sample

SCENES, COMPARED, FUSED, IN_BFLOAT16 = 9, 7, 14, 2
QUESTION = "What are the key elements in this scene?"
ABOUT_THE_QUESTION = {"absent", "shown"}
"""Attributes with one value only: a question that is asked rightly gives them away."""


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        fork_pools(patch, evaluate)
        patch.setattr(evaluate, "_FUSED", FUSED)
        patch.setattr(evaluate, "_IN_BFLOAT16", IN_BFLOAT16)
        folder = tmp_path_factory.mktemp("scenes")
        return evaluate.evaluate(str(demo_checkpoint()), folder, SCENES, "cpu", 2, COMPARED)


def test_every_attribute_is_right_in_95_of_100(found):
    shares = found["float32"]["attributes"]
    assert set(shares) == {
        "count", "shape", "direction", "place", "fastest", "camera", "flicker", "absent", "shown",
    }  # fmt: skip
    for name, one in shares.items():
        assert one["right"] >= 0.95 * one["asked"], (name, one, found["wrong"])


def test_answers_end_by_themselves(found):
    assert found["stopped_by_eos"] == found["questions"]
    low, high = found["output_tokens"]
    assert low >= 10
    assert high <= 60


def test_another_scenes_features_give_chance(found):
    """The control: answers come from the features, and from nothing else."""
    right = total = 0
    for name, one in found["shuffled"]["attributes"].items():
        if name not in ABOUT_THE_QUESTION:
            assert one["low_pct"] <= found["constant_guess_pct"][name], (name, one)
            right, total = right + one["right"], total + one["asked"]
    guess = found["constant_guess_pct"]
    expected = sum(guess[n] * one["asked"] for n, one in found["shuffled"]["attributes"].items() if n in guess) / sum(
        one["asked"] for one in found["shuffled"]["attributes"].values()
    )
    assert proportion(right, total).low_pct <= expected
    assert found["shuffled"]["exact"]["high_pct"] < found["compared"]["exact"]["low_pct"]


def test_one_frame_does_not_give_direction(found):
    """Of the two ways along the axis that a frame does show, one is right by chance; so it is with a camera's turn."""
    one = found["one_frame"]["attributes"]["direction"]
    assert one["right"] < 0.65 * one["asked"]
    assert (
        found["one_frame"]["attributes"]["camera"]["right"] < 0.9 * found["compared"]["attributes"]["camera"]["right"]
    )
    assert found["one_frame"]["attributes"]["shape"]["right"] > 0.9 * found["one_frame"]["attributes"]["shape"]["asked"]


@pytest.mark.parametrize(("way", "least"), [("from_saved_features", 70), ("from_fused_call", FUSED)])
def test_the_same_tokens_every_way(found, way, least):
    same, total = found[f"same_tokens_{way}"]
    assert same == total >= least


def test_bfloat16_is_as_right(found):
    for name, one in found["bfloat16"]["attributes"].items():
        whole = found["beside_bfloat16"]["attributes"][name]
        assert one["asked"] == whole["asked"]
        assert abs(one["right"] - whole["right"]) <= max(1, 0.02 * one["asked"])


def test_transformers_loads_it_and_answers_the_same(demo_model):
    model = AutoModelForImageTextToText.from_pretrained(demo_checkpoint()).eval()
    processor = AutoProcessor.from_pretrained(demo_checkpoint())
    sample = demo_sample("demo:0")
    frames = event_frames(read_events(sample.event_data))
    messages = [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": QUESTION}],
        }
    ]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    inputs = processor(images=[frames], text=[prompt], return_tensors="pt")
    new = model.generate(**inputs, max_new_tokens=64, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.decode(new, skip_special_tokens=True).strip() == sample.reference
    assert demo_model.generate(QUESTION, demo_model.encode(sample), max_new_tokens=64).text == sample.reference


def test_keys_are_those_of_the_published_layout():
    with safe_open(demo_checkpoint() / "model.safetensors", "pt") as file:
        keys = set(file.keys())
        assert {file.get_slice(key).get_dtype() for key in keys} == {"BF16"}
    for key in (
        "model.embed_tokens.weight",
        "model.layers.5.self_attn.q_proj.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.visual_tower.visual_tower.vision_model.embeddings.class_embedding",
        "model.visual_tower.visual_tower.vision_model.encoder.layers.3.mlp.fc2.bias",
        "model.visual_tower.visual_tower.vision_model.pre_layrnorm.weight",
        "model.visual_tower.visual_tower.vision_model.post_layernorm.weight",
        "model.visual_projector.0.weight",
        "model.visual_projector.2.bias",
        "model.feature_adaptor.weight",
    ):
        assert key in keys
    parts = {key.removeprefix("model.").split(".")[0] for key in keys}
    assert parts == {
        "embed_tokens", "layers", "norm", "lm_head", "visual_tower", "visual_projector", "feature_adaptor",
    }  # fmt: skip
