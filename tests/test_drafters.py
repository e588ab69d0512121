from types import SimpleNamespace

import pytest

from unfuse.drafters import SavedHistory, pick_drafter, vocabulary_of
from unfuse.engines.base import DraftSupport
from unfuse.errors import InputError
from unfuse.loading import Placement, load
from unfuse.samples.demo import demo_sample
from unfuse.speculation.history import History
from unfuse.speculation.ngram import NGram
from unfuse.speculation.settings import SpeculationSettings
from unfuse.stages import Sampling

FAST = DraftSupport(verified=True, faster=True)
REFERENCE = DraftSupport(verified=True, note="no faster")
NONE = DraftSupport(verified=False, note="another device")


def pick(support, adapter=None, **settings):
    rows = SimpleNamespace(weight=[0] * 50)
    language = SimpleNamespace(embed=rows, head=rows)
    adapter = adapter or SimpleNamespace(language=language, end_ids=(2,), fingerprint="ab" * 32)
    return pick_drafter(SpeculationSettings(**settings), adapter, SimpleNamespace(draft_support=support))


@pytest.mark.parametrize(
    ("support", "method", "kind", "notes"),
    [
        (FAST, "auto", History, ()),
        (FAST, "history", History, ()),
        (FAST, "ngram", NGram, ()),
        (FAST, "off", None, ()),
        (REFERENCE, "auto", None, ()),
        (REFERENCE, "history", History, ("speculation: no faster",)),
        (NONE, "auto", None, ()),
        (NONE, "history", None, ("speculation is off: another device",)),
        (NONE, "off", None, ()),
    ],
)
def test_a_drafter_is_used_where_drafts_pay_or_are_requested(support, method, kind, notes):
    drafter, found = pick(support, method=method)
    assert found == notes
    assert drafter is None if kind is None else type(drafter) is kind


def test_vocabulary_is_the_larger_one():
    assert vocabulary_of(SimpleNamespace(weight=[0] * 4), SimpleNamespace(weight=[0] * 9)) == 9


def test_answers_pass_from_run_to_run(tmp_path):
    path = tmp_path / "history"
    drafter, _ = pick(FAST, method="history", history=path)
    assert isinstance(drafter, SavedHistory)
    drafter.learn([5, 6, 7, 2])
    drafter.close()
    drafter, _ = pick(FAST, history=path)
    assert drafter.begin([]).draft([5]).tolist() == [6, 7, 2]
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="no history"):
        pick(FAST, history=path)


@pytest.fixture(scope="module", params=["history", "ngram"])
def drafting(request):
    with load("demo", device="cpu", speculate=request.param) as model:
        yield model


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=3)])
def test_answers_are_those_without_speculation(demo_model, drafting, sampling):
    """Greedy and sampled, whole and streamed, with several questions about several scenes."""
    for scene in range(3):
        features = demo_model.encode(demo_sample(f"demo:{scene}"))
        for question in ("What moves?", "Which way does it move?"):
            expected = demo_model.generate(question, features, max_new_tokens=24, sampling=sampling)
            found = drafting.generate(question, features, max_new_tokens=24, sampling=sampling)
            assert found.token_ids == expected.token_ids
            counts = found.speculation
            assert counts.decode_passes + counts.accepted_tokens == len(expected.token_ids) - 1
            streamed = "".join(drafting.stream(question, features, max_new_tokens=24, sampling=sampling))
            assert streamed.strip() == expected.text


def test_a_repeated_answer_takes_few_passes(demo_model, demo_sample):
    with load("demo", device="cpu", speculate="history") as model:
        assert any("no faster" in note for note in model.notes)
        features = demo_model.encode(demo_sample)
        first, second = (model.generate("What moves?", features, max_new_tokens=32) for _ in range(2))
    assert second.speculation.decode_passes < first.speculation.decode_passes
    assert second.token_ids == first.token_ids


def test_a_stream_that_is_left_is_learnt_up_to_there(demo_model, demo_sample):
    with load("demo", device="cpu", speculate="history") as model:
        features = demo_model.encode(demo_sample)
        stream = model.stream("What moves?", features, max_new_tokens=32)
        next(stream)
        stream.close()
        whole = model.generate("What moves?", features, max_new_tokens=32)
        learnt = [answer.tolist() for answer in model.drafter.answers]
    assert 0 < len(learnt[0]) < len(learnt[1])
    assert learnt[0] == learnt[1][: len(learnt[0])]
    assert tuple(learnt[1]) == whole.token_ids


def test_a_model_is_loaded_without_a_drafter_by_default():
    with Placement("cpu").load("demo") as model:
        assert model.drafter is None
