"""Questions on a continuous batch: joined together, refused one by one, collected, aborted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from unfuse.engines.batching import TokenOutput
from unfuse.errors import DeviceError, FeaturesError, NonFiniteError
from unfuse.samples import Question
from unfuse.scheduler import ScheduledQuestion, Scheduler
from unfuse.stages import Generation


class FakeBatch:
    """Generates 0, 1, 2, ... for every request, two tokens a step."""

    capacity = 2

    def __init__(self):
        self.busy_s = {"prefill": 1.0, "decode": 2.0}
        self.counts = {}
        self.added = []
        self.aborted = []
        self.closed = False

    def add(self, requests):
        if any(request.too_large for request in requests):
            raise DeviceError("request", found="much", expected="less")
        self.added.append([request.request_id for request in requests])
        self.counts.update({request.request_id: (0, request.num_tokens) for request in requests})

    def step(self):
        outputs = []
        for name, (count, most) in list(self.counts.items()):
            for token in range(count, min(count + 2, most)):
                finished = "length" if token + 1 == most else None
                outputs.append(TokenOutput(request_id=name, token_id=token, finished=finished, reused_prefix_tokens=4))
            self.counts[name] = (count + 2, most)
            if count + 2 >= most:
                del self.counts[name]
        return outputs

    def abort(self, request_id):
        self.counts.pop(request_id)
        self.aborted.append(request_id)

    def close(self):
        self.closed = True


@pytest.fixture
def batch():
    return FakeBatch()


@pytest.fixture
def scheduler(batch):
    adapter = SimpleNamespace(decode_text=lambda ids: "-".join(map(str, ids)))
    model = SimpleNamespace(adapter=adapter, continuous=lambda capacity, *, interleave: batch)
    return Scheduler(model, queue=3)


def scheduled(name):
    return ScheduledQuestion(question=Question(question_id=name, text="?"))


def request(name, num_tokens=3, *, too_large=False):
    made = SimpleNamespace(
        request_id=name, num_tokens=num_tokens, too_large=too_large, prompt=SimpleNamespace(length=7)
    )
    return lambda: made


def test_a_generation_is_collected_from_tokens(scheduler):
    one, other = scheduled("one"), scheduled("other")
    assert scheduler.join([(one, request("one")), (other, request("other", 5))]) == []
    assert (scheduler.capacity, scheduler.limit, scheduler.unfinished) == (2, 5, 2)
    seen = [(each.question.question_id, list(each.token_ids), each.generation) for each in scheduler.step()]
    assert seen == [("one", [0], None), ("one", [0, 1], None), ("other", [0], None), ("other", [0, 1], None)]
    assert [each for each in scheduler.step() if each.generation is not None] == [one]
    assert one.generation == Generation(
        token_ids=(0, 1, 2), text="0-1-2", stop_reason="length", prompt_tokens=7, reused_prefix_tokens=4
    )
    assert scheduler.unfinished == 1
    assert [each for each in scheduler.step() if each.generation is not None] == [other]
    assert scheduler.unfinished == 0
    assert scheduler.busy_s == {"prefill": 1.0, "decode": 2.0}


def test_questions_join_together_and_are_refused_alone(scheduler, batch):
    def broken():
        raise FeaturesError("question", found="a bad one", expected="a good one")

    good, bad, large, last = (scheduled(name) for name in ("good", "bad", "large", "last"))
    refused = scheduler.join(
        [(good, request("good")), (bad, broken), (large, request("large", too_large=True)), (last, request("last"))]
    )
    assert [(each, type(error)) for each, error in refused] == [(bad, FeaturesError), (large, DeviceError)]
    assert batch.added == [["good"], ["last"]]
    assert scheduler.unfinished == 2
    assert scheduler.join([(bad, request("bad")), (large, request("large"))]) == []
    assert batch.added[-1] == ["bad", "large"]


def test_any_other_error_is_raised(scheduler):
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scheduler.join([(scheduled("one"), broken)])
    assert scheduler.unfinished == 0


def test_an_aborted_question_leaves_the_batch(scheduler, batch):
    one, other = scheduled("one"), scheduled("other")
    scheduler.join([(one, request("one")), (other, request("other"))])
    scheduler.abort(one)
    scheduler.abort(one)
    scheduler.abort(scheduled("unknown"))
    assert batch.aborted == ["one"]
    assert {each.question.question_id for each in scheduler.step()} == {"other"}
    assert one.token_ids == []
    scheduler.close()
    assert batch.closed
    assert scheduler.unfinished == 0


def test_a_question_that_fails_leaves_the_batch(scheduler, batch):
    one, other = scheduled("one"), scheduled("other")
    scheduler.join([(one, request("one")), (other, request("other"))])
    error = NonFiniteError("decode", "logits", found="NaN")
    batch.step = lambda: [
        TokenOutput(request_id="one", token_id=-1, finished=None, reused_prefix_tokens=0, error=error),
        TokenOutput(request_id="other", token_id=5, finished="length", reused_prefix_tokens=0),
    ]
    assert [(each.question.question_id, each.error) for each in scheduler.step()] == [("one", error), ("other", None)]
    assert (one.generation, one.token_ids) == (None, [])
    assert other.generation is not None
    assert scheduler.unfinished == 0
    assert batch.aborted == [], "the batch has removed it itself"
