"""Grouping of rows into scenes, and stages 1 and 2 of a scene without a network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unfuse.batch_inference.scenes import MAX_QUESTIONS, SceneQuestions, prepare, questions_of, scenes_of
from unfuse.errors import PromptError
from unfuse.events import TimeWindow
from unfuse.samples import Question, Sample


def rows(samples, questions=None):
    return list(questions_of(samples, questions))


def events(name, path, question="What moves?", **more):
    return Sample(sample_id=name, question=question, event_data=Path(path), **more)


def test_rows_of_the_same_media_are_one_scene():
    samples = [
        events("1", "a.npy"), events("2", "b.npy"), events("3", "a.npy", "Which way?"),
        events("4", "a.npy", window=TimeWindow(start_us=0, stop_us=5)),
    ]  # fmt: skip
    found = scenes_of(rows(samples))
    assert [[question.question_id for question in scene.questions] for scene in found] == [["1", "3"], ["2"], ["4"]]
    assert found[0].questions[1].text == "Which way?"


@pytest.mark.parametrize("count", [1, MAX_QUESTIONS, MAX_QUESTIONS + 1, 3 * MAX_QUESTIONS])
def test_very_many_questions_about_a_scene_come_in_parts(count):
    """All prompts of a part are prepared before its first answer."""
    found = scenes_of(rows([events("1", "a.npy"), events("2", "b.npy")], [f"{i}?" for i in range(count)]))
    assert max(len(scene.questions) for scene in found) <= MAX_QUESTIONS
    assert len(found) == 2 * -(-count // MAX_QUESTIONS)
    asked = [question.question_id for scene in found for question in scene.questions]
    assert asked == [f"{name}#{i}" for name in "12" for i in range(1, count + 1)]


def test_questions_of_a_file_are_asked_of_every_sample():
    found = rows([events("1", "a.npy"), events("2", "b.npy")], ["One?", "Two?"])
    assert [(question.question_id, question.text) for _, question in found] == [
        ("1#1", "One?"), ("1#2", "Two?"), ("2#1", "One?"), ("2#2", "Two?")
    ]  # fmt: skip
    with pytest.raises(PromptError, match="special token"):
        rows([events("1", "a.npy")], ["<image>?"])


def test_frames_in_memory_and_text_alone():
    frame = np.zeros((4, 4, 3), np.uint8)
    shared = (frame,)
    samples = [
        Sample(sample_id="1", frames=shared), Sample(sample_id="2", frames=shared),
        Sample(sample_id="3", frames=(frame.copy(),)), Sample(sample_id="4"), Sample(sample_id="5"),
    ]  # fmt: skip
    assert [len(scene.questions) for scene in scenes_of(rows(samples))] == [2, 1, 1, 1]


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_no_question_is_lost_or_asked_twice(drawn):
    samples = [
        events(str(i), f"{file}.npy", window=TimeWindow(start_us=0, stop_us=9) if w else None)
        for i, (file, w) in enumerate(drawn)
    ]
    found = scenes_of(rows(samples))
    assert sorted(a.question_id for scene in found for a in scene.questions) == sorted(
        str(i) for i in range(len(drawn))
    )
    assert len(found) == len(set(drawn))
    done = [str(i) for i in range(0, len(drawn), 2)]
    left = [scene.without(done) for scene in found]
    assert {a.question_id for scene in left for a in scene.questions} == {str(i) for i in range(1, len(drawn), 2)}


def test_stages_1_and_2_of_a_scene(demo_model, demo_sample):
    preprocessor = demo_model.adapter.preprocessor
    scene = SceneQuestions(
        sample=demo_sample, questions=tuple(Question(question_id=q, text=q) for q in ("What?", "Which way?"))
    )
    prepared = prepare(preprocessor, scene)
    first, second = prepared.prompts
    own = demo_model.preprocess(demo_model.load(demo_sample), "What?")
    assert torch.equal(first.pixel_values, own.pixel_values)
    assert first.token_ids == own.token_ids
    assert not second.pixel_values.numel()
    assert prepared.pixels is first
    assert prepared.media_sha256 == own.media_sha256
    assert prepared.load_s > 0
    assert prepared.preprocess_s > 0
    features = demo_model.encode(own)
    cached = prepare(preprocessor, scene, {own.media_sha256: features}.get)
    assert cached.features is features
    assert cached.pixels is None
    assert [prompt.token_ids for prompt in cached.prompts] == [prompt.token_ids for prompt in prepared.prompts]


def test_an_error_of_a_scene_stays_with_it(demo_model, demo_sample, tmp_path):
    preprocessor = demo_model.adapter.preprocessor
    questions = (Question(question_id="long", text="why? " * 3000), Question(question_id="short", text="Why?"))
    prepared = prepare(preprocessor, SceneQuestions(sample=demo_sample, questions=questions))
    assert "expected at most 2048" in prepared.prompts[0].reason
    assert prepared.pixels is prepared.prompts[1]
    gone = replace(demo_sample, event_data=tmp_path / "gone.npy")
    prepared = prepare(preprocessor, SceneQuestions(sample=gone, questions=questions))
    assert all("gone.npy" in each.reason for each in prepared.prompts)
    assert prepared.pixels is None
