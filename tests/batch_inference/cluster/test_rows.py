"""A row keeps bits, names and shared tensors, and holds only JSON and tensors."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from unfuse.batch_inference.answer import Answer
from unfuse.batch_inference.cluster import rows
from unfuse.batch_inference.scenes import PreparedScene, SceneQuestions, prepare
from unfuse.events import TimeWindow
from unfuse.features import Features
from unfuse.samples import Question, Sample
from unfuse.stages import Generation, Loaded, Prepared, Provenance
from unfuse.unavailable import Unavailable

pytest.importorskip("pyarrow")

QUESTIONS = (Question(question_id="a/1", text="What \ud800 moves?"), Question(question_id="a/2", text="Why?\u2028"))


def travelled(row):
    """Through a table and, as between processes, through its bytes."""
    import pyarrow

    table = rows.to_table([rows.SceneRow({"before": 1}), row])
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    read = pyarrow.ipc.open_stream(sink.getvalue()).read_all()
    first, second = rows.from_table(read)
    assert first == rows.SceneRow({"before": 1}, {})
    return second


def test_a_scene_from_files_is_found_from_any_folder(tmp_path, monkeypatch):
    sample = Sample(
        sample_id="s", question="not this", event_data=Path("a.npy"), window=TimeWindow(start_us=3, stop_us=9),
        event_image=(Path("0.png"), tmp_path / "1.png"), video_frames=Path("v"), reference="nor this",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path)
    found = rows.scene_of(travelled(rows.scene_row(SceneQuestions(sample=sample, questions=QUESTIONS))))
    assert found.questions == QUESTIONS
    assert found.sample == Sample(
        sample_id="s", event_data=tmp_path / "a.npy", window=sample.window,
        event_image=(tmp_path / "0.png", tmp_path / "1.png"), video_frames=tmp_path / "v",
    )  # fmt: skip


def test_frames_in_memory_travel_with_their_scene():
    frames = tuple(np.full((2, i, 3), i, np.uint8) for i in range(1, 13))
    found = rows.scene_of(
        travelled(rows.scene_row(SceneQuestions(sample=Sample(sample_id="s", frames=frames), questions=QUESTIONS)))
    )
    assert [frame.tolist() for frame in found.sample.frames] == [frame.tolist() for frame in frames]


def test_frames_of_a_loaded_scene():
    frame = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    frame.flags.writeable = False
    loaded = Loaded(frames=[frame, frame[:, :1]], media="frames", media_sha256="ab", question="?", notes=("n",))
    questions, found = rows.loaded_of(travelled(rows.loaded_row(QUESTIONS, loaded)))
    assert questions == QUESTIONS
    assert [each.tolist() for each in found.frames] == [each.tolist() for each in loaded.frames]
    assert not any(each.flags.writeable for each in found.frames)
    assert replace(found, frames=[]) == replace(loaded, frames=[])
    row = travelled(rows.loaded_row(QUESTIONS, Unavailable("no such file")))
    assert rows.loaded_of(row) == (QUESTIONS, Unavailable("no such file"))
    assert rows.prepared_of(row).prompts == (Unavailable("no such file"),) * 2


def prompt(**more):
    ids = torch.tensor([[1, -200, 2]])
    return Prepared(
        input_ids=ids, pixel_values=torch.empty(0, 3, 0, 0, dtype=torch.bfloat16), media_sha256="ab", question="?",
        num_frames=2, text_tokens=2, media_tokens=7, frame_sizes=((4, 5), (6, 7)), token_ids=(1, -200, 2), **more,
    )  # fmt: skip


def same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype
        assert torch.equal(tensor, other[name])


def test_prompts_and_a_reason_among_them():
    whole = torch.arange(40, dtype=torch.bfloat16).view(2, 20)
    pixels = whole[:, :12].view(2, 12)
    first = replace(prompt(), pixel_values=pixels, inputs={"pixel_values": pixels, "grid": whole[0, :3].long()})
    scene = PreparedScene(
        questions=(*QUESTIONS, *QUESTIONS),
        prompts=(first, Unavailable("too long"), prompt(), prompt()),
        media_sha256="ab",
    )
    row = travelled(rows.prepared_row(scene))
    assert sum("pixel" in name for name in row.tensors) == 3, "pixels that are an input as well go once"
    found = rows.prepared_of(row)
    assert found.questions == scene.questions
    assert found.prompts[1] == Unavailable("too long")
    assert found.pixels is found.prompts[0]
    assert found.prompts[0].inputs["pixel_values"] is found.prompts[0].pixel_values, "uploaded once, too"
    for one, other in zip(scene.prompts, found.prompts, strict=True):
        if isinstance(one, Prepared):
            same({"ids": one.input_ids, "px": one.pixel_values, **one.inputs},
                 {"ids": other.input_ids, "px": other.pixel_values, **other.inputs})  # fmt: skip
            assert other.frame_sizes == one.frame_sizes
            assert (other.token_ids, other.text_tokens, other.media_tokens) == ((1, -200, 2), 2, 7)


def test_features_with_deeper_layers():
    values = torch.randn(7, 4).to(torch.bfloat16)
    source = Provenance(
        model_fingerprint="f", family="x", media_sha256="ab", num_frames=2, dtype="bfloat16", shape=(7, 4)
    )
    layers = tuple(values * i for i in range(12))
    features = Features(values, source, layers, {"inputs": {"pixel_values": {"shape": [2]}}, "media_tokens": 7})
    first = prompt(inputs={"pixel_values": torch.ones(2), "mm_token_type_ids": torch.ones(1, 3)})
    stripped = rows.without_pixels(first, features)
    assert list(stripped.inputs) == ["mm_token_type_ids"]
    assert not stripped.pixel_values.numel()
    scene = PreparedScene(
        questions=QUESTIONS, prompts=(stripped, Unavailable("no")), media_sha256="ab", features=features
    )
    found = rows.prepared_of(travelled(rows.prepared_row(scene))).features
    assert found.provenance == source
    assert found.layout == features.layout
    assert found.digest == features.digest


def test_answers():
    generation = Generation(token_ids=(3, 4), text="a \ud800", stop_reason="eos", prompt_tokens=7)
    good = Answer(question=QUESTIONS[0], generation=generation, media_sha256="ab")
    bad = Answer(question=QUESTIONS[1], generation=Unavailable("no"))
    assert list(rows.answers_of(travelled(rows.answers_row([good, bad])))) == [good, bad]


def test_a_real_scene_is_prepared_the_same_on_both_ways(demo_model, demo_sample):
    scene = SceneQuestions(sample=demo_sample, questions=QUESTIONS[1:])
    prepared = prepare(demo_model.adapter.preprocessor, scene)
    found = rows.prepared_of(travelled(rows.prepared_row(prepared)))
    assert torch.equal(found.pixels.pixel_values, prepared.pixels.pixel_values)
    assert demo_model.encode(found.pixels).digest == demo_model.encode(prepared.pixels).digest
