"""Scenes are prepared ahead, as far as there is room, and every one comes out once."""

from __future__ import annotations

import threading

import pytest

from tests.started import PATIENCE_S, wait_for
from unfuse.batch_inference.job import scene_source
from unfuse.batch_inference.pool import InProcessPreparer, Pool
from unfuse.batch_inference.scenes import PreparedScene, SceneQuestions, questions_of, scenes_of
from unfuse.errors import CheckpointError, UnfuseError
from unfuse.samples import Question, Sample
from unfuse.samples.demo import demo_dataset
from unfuse.unavailable import Unavailable


def taken(pool, scenes):
    found = {}
    with pool:
        pool.start(scene_source(scenes))
        while (prepared := pool.take(wait_s=None)) is not None:
            for question, prompt in zip(prepared.questions, prepared.prompts, strict=True):
                assert question.question_id not in found
                found[question.question_id] = prompt
    assert pool.ended
    return found


class Slow:
    """Prepares nothing, and counts how much of it there is at any one time."""

    deaths = 0

    def __init__(self, fails_at=None):
        self.made = 0
        self.fails_at = fails_at

    def __call__(self, scene):
        self.made += 1
        if self.made == self.fails_at:
            raise CheckpointError("no more")
        return PreparedScene(
            questions=scene.questions,
            prompts=(Unavailable("no"),) * len(scene.questions),
            load_s=0.5,
            preprocess_s=0.25,
        )

    def interrupt(self):
        self.interrupted = True

    def close(self):
        assert self.interrupted


def nothing(count):
    return [
        SceneQuestions(sample=Sample(sample_id=str(i)), questions=(Question(question_id=str(i), text="?"),))
        for i in range(count)
    ]


@pytest.mark.parametrize(("threads", "room"), [(1, 1), (4, 2), (3, 8)])
def test_no_more_is_prepared_than_there_is_room_for(threads, room):
    pool = Pool([Slow() for _ in range(threads)], room)
    found = []
    with pool:
        pool.start(scene_source(nothing(50)))
        wait_for(lambda: pool._num_prepared >= min(50, room + threads))
        assert pool._num_prepared == room + threads, "it goes ahead as far as there is room"
        while (prepared := pool.take(wait_s=None)) is not None:
            found.append(prepared.questions[0].question_id)
    assert sorted(found, key=int) == [str(i) for i in range(50)]
    assert pool.times.most_prepared <= room + threads
    assert (pool.times.load_s, pool.times.preprocess_s) == (25.0, 12.5)
    assert pool.times.waiting_for_room_s > 0


def test_a_failure_of_the_pool_is_raised_where_scenes_are_taken():
    pool = Pool([Slow(), Slow(fails_at=3)], 2)
    with pytest.raises(UnfuseError, match="no more"):
        taken(pool, nothing(1000))


def test_closing_a_pool_that_is_full_ends_its_threads():
    before = threading.active_count()
    pool = Pool([Slow(), Slow()], 1)
    with pool:
        pool.start(scene_source(nothing(1000)))
        assert pool.take(wait_s=None) is not None
    assert threading.active_count() == before


def test_closing_a_pool_whose_source_waits():
    """The source may wait for answers that never come, because the answering part has just failed."""
    given = threading.Event()

    def source():
        given.wait()
        return nothing(1)[0]

    preparer = Slow()
    pool = Pool([preparer], 1)
    closing = threading.Thread(target=pool.close, daemon=True)
    pool.start(source)
    closing.start()
    closing.join(PATIENCE_S)
    assert not closing.is_alive()
    given.set()
    pool._threads[0].join(PATIENCE_S)
    assert not pool._threads[0].is_alive()
    assert preparer.made == 0, "the scene that came too late"


def test_starved_only_where_no_scene_can_come():
    given = threading.Event()
    scenes = iter(nothing(1))

    def source():
        scene = next(scenes, None)
        if scene is None:
            given.wait()
        return scene

    pool = Pool([Slow()], 2)
    with pool:
        assert not pool.starved
        pool.start(source)
        assert pool.take(wait_s=PATIENCE_S) is not None
        wait_for(lambda: pool.starved)
        assert not pool.ended
        assert pool.take() is None
        given.set()
        assert pool.take(wait_s=None) is None
        assert pool.ended
        assert pool.starved


def test_this_process_is_a_preparer(demo_model):
    assert taken(
        Pool([InProcessPreparer(demo_model.adapter.preprocessor)], 1),
        scenes_of(questions_of(demo_dataset(max_samples=1).samples)),
    ).keys() == {"demo:0"}
