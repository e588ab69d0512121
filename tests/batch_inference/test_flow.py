"""Answers of the pipeline are those of the model, question by question; and nothing piles up in it."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from unfuse.batch_inference.flow import Flow, FlowSettings
from unfuse.batch_inference.job import scene_source
from unfuse.batch_inference.pool import InProcessPreparer, Pool, PoolTimes
from unfuse.batch_inference.scenes import SceneQuestions, prepare
from unfuse.engines.batching import TokenOutput
from unfuse.errors import DeviceError
from unfuse.features import Features
from unfuse.samples import Question, Sample
from unfuse.stages import Loaded, Prepared, Provenance, Sampling

SETTINGS = FlowSettings(max_new_tokens=8, sampling=Sampling())


def flowed(model, scenes, settings=SETTINGS, *, room=4, store=None):
    answers = {}

    def emit(answer):
        assert answer.question.question_id not in answers, "answered twice"
        answers[answer.question.question_id] = answer

    with Pool([InProcessPreparer(model.adapter.preprocessor)], room) as pool:
        flow = Flow(model, pool, settings, emit, store)
        pool.start(scene_source(scenes))
        flow.run()
    return answers, flow


def tokens(answers):
    return {name: answer.generation.token_ids for name, answer in answers.items()}


@pytest.mark.parametrize(("capacity", "together"), [(1, 1), (2, 3), (8, 8), (5, 2)])
def test_answers_equal_the_models_generations(demo_model, demo_work, expected, capacity, together):
    settings = replace(SETTINGS, capacity=capacity, encode_together=together)
    answers, flow = flowed(demo_model, demo_work.scenes(), settings)
    assert answers.keys() == expected.keys()
    for name, answer in answers.items():
        assert replace(answer.generation, reused_prefix_tokens=0) == expected[name]
    # Three questions a scene: the batch, those that are to join it next, and one scene too many.
    assert flow.most_held <= capacity + together + 3
    times = flow.times(1.0)
    assert min(times.encode_s, times.prefill_s, times.decode_s, times.load_s, times.preprocess_s) > 0


def test_a_scene_is_encoded_once_and_its_questions_share_their_prefix(demo_model, demo_work, monkeypatch):
    encoded = []
    adapter = demo_model.adapter
    original = type(adapter).encode_batch
    monkeypatch.setattr(
        adapter, "encode_batch", lambda prepared: encoded.extend(prepared) or original(adapter, prepared)
    )
    stored = []
    demo_model.engine.close()  # forgets the other tests
    answers, _ = flowed(demo_model, demo_work.scenes(), replace(SETTINGS, capacity=2), store=stored.append)
    assert len(encoded) == len(stored) == 4
    assert {features.provenance.media_sha256 for features in stored} == {a.media_sha256 for a in answers.values()}
    # Prompts of other scenes share the words before the scene, those of one scene the scene as well.
    generations = [answer.generation for answer in answers.values()]
    new = [each.prompt_tokens - each.reused_prefix_tokens for each in generations]
    assert sum(tokens < 70 for tokens in new) == 8, "all but the first question of each of four scenes"


def test_sampled_answers_do_not_depend_on_the_batch(demo_model, demo_work):
    settings = replace(SETTINGS, sampling=Sampling(temperature=0.9, seed=5))
    alone, _ = flowed(demo_model, demo_work.scenes(), replace(settings, capacity=1, encode_together=1))
    beside, _ = flowed(demo_model, demo_work.scenes(), replace(settings, capacity=7, encode_together=4))
    assert tokens(alone) == tokens(beside)


def test_one_bad_scene_and_one_bad_question(demo_model, demo_work, expected, tmp_path):
    first, second, *others = demo_work.scenes()
    gone = replace(first, sample=replace(first.sample, event_data=tmp_path / "gone.npy"))
    questions = (replace(second.questions[0], text="why? " * 3000), *second.questions[1:])
    answers, _ = flowed(demo_model, [gone, replace(second, questions=questions), *others])
    assert answers.keys() == expected.keys()
    failed = {name: answer.error for name, answer in answers.items() if answer.error is not None}
    assert failed.keys() == {*(each.question_id for each in first.questions), second.questions[0].question_id}
    assert all("gone.npy" in failed[each.question_id] for each in first.questions)
    assert "expected at most 2048" in failed[second.questions[0].question_id]
    for name in expected.keys() - failed.keys():
        assert answers[name].generation.token_ids == expected[name].token_ids


def test_scenes_that_cannot_be_encoded_fail_alone(demo_model, demo_work, expected, monkeypatch):
    adapter = demo_model.adapter
    original = type(adapter).encode_batch
    bad = demo_work.scenes()[2]
    sha256 = demo_model.media_sha256(bad.sample)

    def encode_batch(prepared):
        if any(one.media_sha256 == sha256 for one in prepared):
            raise DeviceError("the tower", found="no", expected="yes")
        return original(adapter, prepared)

    monkeypatch.setattr(adapter, "encode_batch", encode_batch)
    answers, _ = flowed(demo_model, demo_work.scenes())
    assert answers.keys() == expected.keys()
    failed = {name for name, answer in answers.items() if answer.error is not None}
    assert failed == {each.question_id for each in bad.questions}


def test_a_request_that_the_batch_refuses_fails_alone(demo_model, demo_work, expected, monkeypatch):
    make = demo_model.continuous

    def continuous(capacity=None, **settings):
        batch = make(capacity, **settings)
        add = batch.add

        def picky(requests):
            for request in requests:
                if request.request_id == "demo:1#2":
                    raise DeviceError("request", found="much", expected="less")
            add(requests)

        batch.add = picky
        return batch

    monkeypatch.setattr(demo_model, "continuous", continuous)
    answers, _ = flowed(demo_model, demo_work.scenes())
    assert {name for name, answer in answers.items() if answer.error is not None} == {"demo:1#2"}
    assert answers.keys() == expected.keys()


def test_out_of_memory_is_a_one_line_error(demo_model, demo_work, monkeypatch):
    make = demo_model.continuous

    def continuous(capacity=None, **settings):
        batch = make(capacity, **settings)

        def step():
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

        batch.step = step
        return batch

    monkeypatch.setattr(demo_model, "continuous", continuous)
    with pytest.raises(DeviceError, match="Tried to allocate 2 GiB.*--resume and a smaller --capacity"):
        flowed(demo_model, demo_work.scenes())


def test_nothing_to_answer(demo_model):
    assert flowed(demo_model, [])[0] == {}


class InstantPreprocessor:
    """Stages 1 and 2 of pictures that are one number."""

    def load(self, sample):
        return Loaded(frames=[], media="number", media_sha256="m", question=sample.sample_id)

    def preprocess(self, scene, question):
        loaded = int(scene.question)
        return Prepared(
            input_ids=torch.tensor([[loaded]]), pixel_values=torch.full((1, 1000), float(loaded)), media_sha256="m",
            question=question, num_frames=1, text_tokens=1, media_tokens=1, token_ids=(loaded,),
        )  # fmt: skip


class InstantBatch:
    """Writes two tokens of everything at once."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.busy_s = {"prefill": 0.0, "decode": 0.0}
        self.requests = []
        self.most = 0

    @property
    def unfinished(self):
        return len(self.requests)

    def add(self, requests):
        self.requests += requests
        self.most = max(self.most, self.unfinished)

    def step(self):
        found = []
        for request in self.requests[: self.capacity]:
            for token, finished in ((request.prompt.number, None), (7, "length")):
                found.append(
                    TokenOutput(
                        request_id=request.request_id, token_id=token, finished=finished, reused_prefix_tokens=0
                    )
                )  # fmt: skip
        self.requests = self.requests[self.capacity :]
        return found

    def close(self):
        self.requests = []


class InstantModel:
    """A model that takes no time, so that only the pipeline is measured."""

    device = torch.device("cpu")

    def __init__(self):
        self.adapter = SimpleNamespace(
            preprocessor=InstantPreprocessor(), upload=lambda prepared: prepared, decode_text=lambda ids: str(ids[0])
        )
        self.together = set()

    def continuous(self, capacity=None, *, interleave):
        assert not interleave, "all are answered soonest"
        self.batch = InstantBatch(capacity or 16)
        return self.batch

    def encode_batch(self, prepared):
        self.together.add(len(prepared))
        return [self.features(one) for one in prepared]

    def features(self, prepared):
        source = Provenance(
            model_fingerprint="f", family="x", media_sha256="m", num_frames=1, dtype="float32", shape=(1, 1000)
        )
        return Features(prepared.pixel_values.clone(), source)

    def request(self, request_id, prepared, features, **more):
        assert float(features.tensor[0, 0]) == prepared.token_ids[0]
        return SimpleNamespace(request_id=request_id, prompt=SimpleNamespace(length=2, number=prepared.token_ids[0]))


def numbered(count):
    for i in range(count):
        yield SceneQuestions(sample=Sample(sample_id=str(i)), questions=(Question(question_id=str(i), text="?"),))


def test_ten_thousand_scenes_take_no_more_memory_than_a_thousand():
    """Pixels of all of them together would be 40 MB."""
    model = InstantModel()
    seen = set()
    peaks = []
    for count in (1_000, 10_000):
        seen.clear()
        tracemalloc.start()
        with Pool([InProcessPreparer(model.adapter.preprocessor)] * 2, 16) as pool:
            flow = Flow(model, pool, SETTINGS, lambda answer: seen.add(int(answer.generation.text)))
            pool.start(scene_source(numbered(count)))
            flow.run()
        peaks.append(tracemalloc.get_traced_memory()[1] - 100 * count)  # the test chooses the ids of the answers
        tracemalloc.stop()
        assert seen == set(range(count))
        assert flow.most_held <= 16 + 2 * 8
        assert model.batch.most <= 16 + 8
        assert pool.times.most_prepared <= 16 + 2 + 1, "one more may be on its way out"
    assert peaks[1] < peaks[0] + 2e6
    assert model.together <= {1, 2, 4, 8}, "few sizes, for each is captured"


def test_started_scenes_are_answered_before_a_wait(demo_model, demo_work, expected):
    """Calls bring scenes with features; a caller brings the next scene after the answer of its last scene."""
    preprocessor, scenes = demo_model.adapter.preprocessor, demo_work.scenes()
    features = {demo_model.media_sha256(scene.sample): demo_model.encode(scene.sample) for scene in scenes}
    left = [prepare(preprocessor, scene, features.get) for scene in scenes]
    answers = {}

    class Calls:
        size, ended, starved, times = 1, False, True, PoolTimes()

        def take(self, *, wait_s=0.0):
            brought = sum(len(scene.questions) for scene in scenes[: len(scenes) - len(left)])
            if wait_s is None:
                assert len(answers) == brought, "waits, and has something to do"
                self.ended = not left
            return left.pop(0) if left and len(answers) == brought else None

    flow = Flow(demo_model, Calls(), SETTINGS, lambda answer: answers.update({answer.question.question_id: answer}))
    flow.run()
    assert tokens(answers) == {name: each.token_ids for name, each in expected.items()}
