"""A fingerprint changes with any tensor and any config field, and with nothing else."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfuse.checksum import checksum_by_torch, tensor_checksum
from unfuse.loading import load
from unfuse.models.eventgpt import EventChatModel
from unfuse.models.fingerprint import model_fingerprint, settings_sha256, with_pixels
from unfuse.models.tensors import own_tensors
from unfuse.samples.demo import demo_checkpoint


def by_words(tensor):
    """The formula of ``unfuse.checksum``, word by word in Python integers."""
    data = tensor.contiguous().view(torch.uint8).flatten().numpy().tobytes()
    data += bytes(-len(data) % 8)
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]

    def mixed(word):
        word = (word ^ word >> 32) * 0x9E3779B97F4A7C15 % 2**64
        return word ^ word >> 32

    return sum(mixed(w) * (2 * i + 1) for i, w in enumerate(words)) % 2**64


@given(st.lists(st.integers(0, 255), min_size=1, max_size=200))
def test_checksum_is_its_formula(values):
    tensor = torch.tensor(values, dtype=torch.uint8)
    assert tensor_checksum(tensor) == by_words(tensor)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=50))
def test_on_a_device_it_is_the_same(values):
    words = torch.tensor(values)
    assert checksum_by_torch(words) == tensor_checksum(words)


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=2, max_size=50), st.data())
def test_a_changed_or_moved_value_shows(values, data):
    tensor = torch.tensor(values, dtype=torch.int32)
    at = data.draw(st.integers(0, len(values) - 1))
    changed = tensor.clone()
    changed[at] ^= data.draw(st.integers(1, 2**31 - 1))
    assert tensor_checksum(changed) != tensor_checksum(tensor)
    flipped = tensor.flip(0)
    assert torch.equal(flipped, tensor) or tensor_checksum(flipped) != tensor_checksum(tensor)


@pytest.mark.parametrize("bit", range(8))
def test_any_flipped_bit_shows(bit):
    """In every byte of many words, the highest among them."""
    tensor = torch.arange(8 * 300, dtype=torch.int64).mul(37).to(torch.uint8)
    whole = tensor_checksum(tensor)
    for at in range(len(tensor)):
        tensor[at] ^= 1 << bit
        assert tensor_checksum(tensor) != whole
        tensor[at] ^= 1 << bit


@pytest.mark.parametrize("signs", [[-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
@pytest.mark.parametrize("distance", [1, 2, 3, 8])
def test_swapped_words_that_differ_in_their_signs_are_detected(signs, distance):
    pair, other = torch.tensor([0.5, 0.25]), torch.tensor([0.5, 0.25]) * torch.tensor(signs)
    between = torch.zeros(2 * (distance - 1))
    assert tensor_checksum(torch.cat([pair, between, other])) != tensor_checksum(torch.cat([other, between, pair]))


def test_chunks_do_not_matter(monkeypatch):
    tensor = torch.arange(1000, dtype=torch.float32)
    words = tensor.view(torch.int64)
    whole = checksum_by_torch(words)
    monkeypatch.setattr("unfuse.checksum._CHUNK_WORDS", 7)
    assert checksum_by_torch(words) == whole == by_words(tensor)


def test_views_count_by_value():
    base = torch.arange(101, dtype=torch.uint8)
    assert tensor_checksum(base[3:]) == tensor_checksum(base[3:].clone())


@pytest.fixture(scope="module")
def model():
    return EventChatModel.from_pretrained(demo_checkpoint())


def test_one_changed_weight(model):
    before = model_fingerprint(model)
    weight = model.model.visual_projector[2].bias
    original = weight.detach().clone()
    with torch.no_grad():
        weight[0] += 1
        assert model_fingerprint(model) != before
        weight.copy_(original)
    assert model_fingerprint(model) == before


def test_config_counts(model):
    before = model_fingerprint(model)
    model.config.rms_norm_eps *= 2
    assert model_fingerprint(model) != before
    model.config.rms_norm_eps /= 2


@pytest.fixture
def checkpoint(tmp_path):
    shutil.copytree(demo_checkpoint().parent, tmp_path / "models")
    return tmp_path / "models" / demo_checkpoint().name


def change_in_place(path, at=-4096):
    """Flip a bit and restore the times, as ``rsync --inplace -t`` and archives of a fixed time do."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        byte = file.read(1)[0]
        file.seek(at, os.SEEK_END if at < 0 else os.SEEK_SET)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)


def rename_over(path):
    other = shutil.copy2(path, path.with_name("other"))
    change_in_place(other)
    other.replace(path)


def retarget_link(path):
    other = shutil.copy2(path, path.with_name("other"))
    change_in_place(other)
    path.rename(path.with_name("first"))
    path.symlink_to("first")
    yield
    path.unlink()
    path.symlink_to("other")


def change_hard_link(path):
    link = path.parents[1] / "link"
    link.hardlink_to(path)
    change_in_place(link)


@pytest.mark.parametrize("change", [change_in_place, rename_over, retarget_link, change_hard_link])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_changed_weights_are_seen_whatever_their_file_says(checkpoint, change, dtype):
    """bfloat16 is the stored dtype: those weights are mapped from the file."""
    weights = checkpoint / "model.safetensors"
    steps = change(weights) if change is retarget_link else None
    if steps is not None:
        next(steps)
    first = load(str(checkpoint), device="cpu", dtype=dtype)
    assert load(str(checkpoint), device="cpu", dtype=dtype).fingerprint == first.fingerprint
    if steps is None:
        change(weights)
    else:
        next(steps, None)
    assert load(str(checkpoint), device="cpu", dtype=dtype).fingerprint != first.fingerprint


def test_one_changed_shard_is_seen(checkpoint):
    model = EventChatModel.from_pretrained(checkpoint)
    model.save_pretrained(checkpoint, max_shard_size="8MB")
    (checkpoint / "model.safetensors").unlink(missing_ok=True)
    shards = sorted(checkpoint.glob("model-*.safetensors"))
    assert len(shards) == 2
    first = load(str(checkpoint), device="cpu").fingerprint
    change_in_place(shards[1])
    assert load(str(checkpoint), device="cpu").fingerprint != first


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_loaded_model_does_not_follow_its_file(checkpoint, dtype):
    """Its fingerprint would be of other weights than those that it computes with."""
    model = load(str(checkpoint), device="cpu", dtype=dtype).adapter.model
    before = model_fingerprint(model)
    weights = checkpoint / "model.safetensors"
    with weights.open("r+b") as file:
        file.seek(-(weights.stat().st_size // 2), os.SEEK_END)
        file.write(b"\x11" * (weights.stat().st_size // 2))
    assert model_fingerprint(model) == before


def test_tied_tensors_stay_tied():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight.data = model["a"].weight.data
    own_tensors(model)
    assert model["a"].weight.data_ptr() == model["b"].weight.data_ptr() != model["a"].bias.data_ptr()


def test_the_config_of_a_part_counts(checkpoint):
    """The tower's config lies in a folder of its own."""
    first = load(str(checkpoint), device="cpu").fingerprint
    (config,) = checkpoint.parent.glob("clip*/config.json")
    values = json.loads(config.read_text())
    values.get("vision_config", values)["layer_norm_eps"] = 0.5
    config.write_text(json.dumps(values))
    assert load(str(checkpoint), device="cpu").fingerprint != first


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "tokenizer.model", "chat.jinja"])
def test_settings_count_by_their_bytes(checkpoint, name):
    (checkpoint / "chat.jinja").write_text("{{ messages }}")
    before = settings_sha256(checkpoint)
    change_in_place(checkpoint / name, at=0)
    assert settings_sha256(checkpoint) != before


def test_weights_and_documents_are_no_settings(checkpoint):
    before = settings_sha256(checkpoint)
    for name in ("README.md", "model.safetensors"):
        change_in_place(checkpoint / name, at=0)
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    assert settings_sha256(checkpoint) == before


def clip(**settings):
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        **{"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}, **settings}
    )


@pytest.mark.parametrize(
    "other",
    [
        {"size": {"shortest_edge": 32}},
        {"crop_size": {"height": 24, "width": 24}},
        {"resample": 2},
        {"do_center_crop": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5, 0.5, 0.5]},
        {"image_std": [0.5, 0.5, 0.5]},
    ],
)
def test_pixels_of_another_kind_are_another_model(other):
    assert with_pixels("f", clip()) == with_pixels("f", clip())
    assert with_pixels("f", clip()) != with_pixels("f", clip(**other))
    assert with_pixels("f", clip()) != with_pixels("g", clip())
    assert with_pixels("f", clip()) != with_pixels("f", clip(), video=True)


def test_a_whole_processor_counts_by_its_pixels():
    """Its image processor's settings and class, and its own settings; not its tokenizer, as that makes no pixels."""
    from transformers import LlavaProcessor

    from unfuse.adapters.random_weights import tokenizer_with

    class Backend(type(clip())):
        pass

    def whole(pixels, *tokens, **settings):
        return with_pixels(
            "f", LlavaProcessor(pixels, tokenizer_with("<image>", *tokens), **{"patch_size": 14, **settings})
        )

    assert whole(clip()) == whole(clip()) == whole(clip(), "<video>")
    assert whole(clip()) != whole(clip(image_mean=[0.5, 0.5, 0.5]))
    assert whole(clip()) != whole(clip(), patch_size=28)
    assert whole(clip()) != whole(Backend(**clip().to_dict()))


def test_pixel_settings_have_no_address_in_them():
    """A value without a JSON form counts by its type: an address would differ in every process."""

    class Odd:
        def to_dict(self):
            return {"size": object(), "nested": [object()], "transformers_version": str(id(self))}

    assert with_pixels("f", Odd()) == with_pixels("f", Odd())


def test_a_checkpoints_own_pixel_settings_count(tmp_path):
    from unfuse.loading import load

    folder = shutil.copytree(demo_checkpoint().parent, tmp_path / "c") / demo_checkpoint().name
    with load(str(folder), device="cpu") as model:
        before = model.fingerprint
        processor = model.adapter.model.get_visual_tower().event_processor
    settings = processor.to_dict() | {"image_mean": [0.5, 0.5, 0.5]}
    settings["resample"] = int(settings["resample"])
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    with load(str(folder), device="cpu") as model:
        assert model.fingerprint != before
