"""The Hugging Face side: conventions of processor and model, and the seed's import path."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoProcessor

from tests import forked
from unfuse.errors import FeaturesError, PromptError
from unfuse.models.eventgpt import EventGPTForConditionalGeneration
from unfuse.models.eventgpt.prompt import build_prompt
from unfuse.samples.demo import demo_checkpoint

FRAMES = [np.full((48, 64, 3), shade, np.uint8) for shade in (0, 60, 120, 180, 240)]
PROMPT = build_prompt("What moves?")


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(demo_checkpoint())


@pytest.fixture(scope="module")
def model():
    return EventGPTForConditionalGeneration.from_pretrained(demo_checkpoint()).eval()


def test_processor_output(processor):
    inputs = processor(images=FRAMES, text=PROMPT, return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 5, 3, 112, 112)
    assert (inputs["input_ids"] == processor.event_token_id).sum() == 5 + 65
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape
    assert inputs["input_ids"][0, 0] == processor.tokenizer.bos_token_id
    assert (inputs["input_ids"] == processor.tokenizer.bos_token_id).sum() == 1


def test_a_batch_is_padded_and_answers_as_alone(processor, model):
    prompts = [PROMPT, build_prompt("What are the key elements in this scene, and how do they move?")]
    scenes = [FRAMES, FRAMES[::-1]]
    processor.tokenizer.padding_side = "left"
    batch = processor(images=scenes, text=prompts, return_tensors="pt")
    together = model.generate(**batch, do_sample=False, max_new_tokens=5)[:, batch["input_ids"].shape[1] :]
    for i, (prompt, scene) in enumerate(zip(prompts, scenes, strict=True)):
        single = processor(images=scene, text=prompt, return_tensors="pt")
        alone = model.generate(**single, do_sample=False, max_new_tokens=5)
        assert alone[0, : single["input_ids"].shape[1]].tolist() == single["input_ids"][0].tolist()
        assert alone[0, single["input_ids"].shape[1] :].tolist() == together[i].tolist()


def test_features_given_are_not_encoded_again(processor, model, monkeypatch):
    inputs = processor(images=FRAMES, text=PROMPT, return_tensors="pt")
    wanted = model.generate(**inputs, do_sample=False, max_new_tokens=5)
    features = model.get_event_features(inputs.pop("pixel_values"))
    assert features.shape == (1, 70, 256)
    monkeypatch.setattr(model.model.visual_tower, "forward", lambda *_: pytest.fail("the tower ran"))
    got = model.generate(**inputs, event_features=features, do_sample=False, max_new_tokens=5)
    assert got.tolist() == wanted.tolist()


def test_the_tower_runs_once_in_generate(processor, model):
    calls = []
    handle = model.model.visual_tower.register_forward_hook(lambda *_: calls.append(1))
    model.generate(**processor(images=FRAMES, text=PROMPT, return_tensors="pt"), do_sample=False, max_new_tokens=5)
    handle.remove()
    assert len(calls) == 1


def test_placeholders_must_match_features(processor, model):
    inputs = processor(images=FRAMES, text=PROMPT, return_tensors="pt")
    with pytest.raises(FeaturesError, match="found 70, expected 69"):
        model(input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"][:, :4])


def test_chat_template_is_the_published_prompt(processor):
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What moves?"}]}]
    assert processor.apply_chat_template(turns, add_generation_prompt=True) == PROMPT


def test_processor_refusals(processor):
    with pytest.raises(PromptError, match="without <event>"):
        processor(images=FRAMES, text="no place for a scene", return_tensors="pt")
    with pytest.raises(PromptError, match="one per prompt"):
        processor(images=[FRAMES, FRAMES], text=PROMPT, return_tensors="pt")
    with pytest.raises(PromptError, match="one scene per prompt"):
        processor(images=FRAMES, text=PROMPT + "<event>", return_tensors="pt")


def test_text_alone(processor, model):
    inputs = processor(text="Hello", return_tensors="pt")
    assert torch.isfinite(model(**inputs).logits).all()


def test_seed_import_path():
    root = Path(__file__).parents[3]
    code = "from model.EventChatModel import EventChatModel; print(EventChatModel.visval_encode.__name__)"
    done = forked.run([sys.executable, "-c", code], cwd=root)
    assert done.stdout.strip() == "visval_encode", done.stderr
