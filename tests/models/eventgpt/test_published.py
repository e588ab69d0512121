"""Input that the published calls refuse; each message names the value found and the value expected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from unfuse.errors import FeaturesError, PromptError
from unfuse.features import Features
from unfuse.models.eventgpt import EventChatModel
from unfuse.samples.demo import demo_checkpoint


@pytest.fixture(scope="module")
def model(demo_model):
    return demo_model.adapter.model


@pytest.fixture(scope="module")
def pixels(demo_model, demo_sample):
    return demo_model.preprocess(demo_model.load(demo_sample)).pixel_values


IDS = torch.tensor([[1, 300, -200, 301]])
QUICK = {"do_sample": False, "max_new_tokens": 3}


def test_one_frame_equals_one_frame(model, pixels):
    one = model.generate(IDS, event_tensors=[pixels[0]], **QUICK)
    again = model.generate(IDS, event_features=model.visval_encode(pixels[:1]), **QUICK)
    assert one.tolist() == again.tolist()


def test_frames_may_carry_a_batch_axis(model, pixels):
    flat = model.generate(IDS, event_tensors=list(pixels), **QUICK)
    batched = model.generate(IDS, event_tensors=[frame[None] for frame in pixels], **QUICK)
    assert flat.tolist() == batched.tolist()


def test_a_batch_of_scenes(model, pixels):
    ids = IDS.repeat(2, 1)
    features = model.visval_encode(pixels)
    both = model.generate(ids, event_features=torch.stack([features, features.flip(0)]), **QUICK)
    single = model.generate(IDS, event_features=features, **QUICK)
    assert both[0].tolist() == single[0].tolist()
    lists = model.generate(ids, event_tensors=[list(pixels), list(pixels.flip(0))], **QUICK)
    assert lists.tolist() == both.tolist()


def test_padding_is_removed(model, pixels):
    features = model.visval_encode(pixels)
    padded = torch.cat([IDS, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = (padded != 0).long()
    assert (
        model.generate(padded, event_features=features, attention_mask=mask, **QUICK).tolist()
        == model.generate(IDS, event_features=features, **QUICK).tolist()
    )


def test_six_tuple_never_touches_the_tower_with_features(model, pixels, monkeypatch):
    features = model.visval_encode(pixels)
    monkeypatch.setattr(model.model.visual_tower, "forward", lambda *_: pytest.fail("the tower ran"))
    labels = torch.tensor([[1, 300, -200, 301]])
    out = model.prepare_inputs_labels_for_multimodal(
        IDS, None, torch.ones_like(IDS), None, labels, None, event_features=features
    )
    assert out[0] is None
    assert out[1] is None
    assert out[2].shape == (1, 3 + 70)
    assert out[4].shape == (1, 3 + 70, model.config.hidden_size)
    assert out[5][0, 0] == 1
    assert (out[5][0, 2:72] == -100).all()
    assert out[5][0, -1] == 301


def test_pooled_features_are_refused(model, pixels):
    pooled = model.get_event_features(pixels)
    with pytest.raises(FeaturesError, match=r"\[1, 70, 256\].*65, 256"):
        model.generate(IDS, event_features=pooled[None], **QUICK)


def test_other_width(model, pixels):
    features = model.visval_encode(pixels)
    with pytest.raises(FeaturesError, match="128.*256"):
        model.generate(IDS, event_features=features[..., :128], **QUICK)


def test_other_dtype(model, pixels):
    features = model.visval_encode(pixels)
    with pytest.raises(FeaturesError, match="float16.*float32"):
        model.generate(IDS, event_features=features.half(), **QUICK)


def test_features_of_the_same_checkpoint(demo_model, demo_sample, pixels):
    """Encoded by the stages, given to the published call of a model that was loaded without them."""
    published = EventChatModel.from_pretrained(demo_checkpoint(), dtype=torch.float32).eval()
    features = demo_model.encode(demo_sample)
    wanted = published.generate(IDS, event_tensors=list(pixels), **QUICK)
    assert published.generate(IDS, event_features=features, **QUICK).tolist() == wanted.tolist()


def test_features_of_another_model(demo_model, demo_sample, model):
    features = demo_model.encode(demo_sample)
    foreign = Features(features.tensor, replace(features.provenance, model_fingerprint="0" * 64))
    with pytest.raises(FeaturesError, match="another model"):
        model.generate(IDS, event_features=foreign, **QUICK)


def test_both_or_neither(model, pixels):
    with pytest.raises(FeaturesError, match="both"):
        model.generate(IDS, event_tensors=list(pixels), event_features=model.visval_encode(pixels), **QUICK)
    with pytest.raises(FeaturesError, match="neither"):
        model.generate(IDS, **QUICK)


def test_bare_tensor(model, pixels):
    with pytest.raises(FeaturesError, match="bare tensor"):
        model.generate(IDS, event_tensors=pixels, **QUICK)


@pytest.mark.parametrize("ids", [[1, -200, 5, -200], [1, 5, 6]])
def test_number_of_placeholders(model, pixels, ids):
    with pytest.raises(PromptError, match="placeholders"):
        model.generate(torch.tensor([ids]), event_features=model.visval_encode(pixels), **QUICK)


def test_prompt_too_long(model, pixels):
    ids = torch.cat([IDS, torch.full((1, 2000), 300)], dim=1)
    with pytest.raises(PromptError, match="2073 positions.*2048"):
        model.generate(ids, event_features=model.visval_encode(pixels), **QUICK)


def test_event_processor_is_pillows(model):
    processor = model.get_visual_tower().event_processor
    assert type(processor).__name__ == "CLIPImageProcessorPil"
