import json

import numpy as np
import pytest

from tests.conftest import SHARED
from unfuse.speculation.history import History
from unfuse.speculation.ngram import NGram
from unfuse.speculation.reference import verified

V, END = 1000, 2


def answer_with(drafter, answer, prompt=()):
    """Decode a known answer with drafts and let the drafter learn it."""
    drafts = drafter.begin(prompt)
    written = list(verified((token for token in answer), drafts, len(answer), lambda token: token == END))
    assert written == answer
    drafter.learn(answer)
    return drafts.counts


def tokens_per_pass(counts):
    return 1 + counts.accepted_tokens / counts.decode_passes


def noise(seed, count=46):
    return np.random.default_rng(seed).integers(3, V, count).tolist()


def test_an_answer_that_was_given_before_takes_few_passes():
    history, answer = History(V, [END]), [*noise(0), END]
    assert answer_with(history, answer).decode_passes == 46
    counts = answer_with(history, answer)
    assert counts.decode_passes == 3
    assert counts.accepted_tokens == counts.draft_tokens == 43
    assert counts.drafted == counts.accepted
    assert 0 < counts.drafting_s < 60


def test_the_first_tokens_are_drafted_from_the_beginnings_of_answers():
    history = History(V, [END])
    for first in (5, 6):
        history.learn([first, 7, 8, END])
    drafts = history.begin([])
    assert drafts.draft([5]).tolist() == [7, 8, END]


def test_the_answer_itself_is_searched_too():
    history = History(V, [END])
    part = noise(1, 12)
    assert answer_with(history, [*part, *part, *part, END]).accepted_tokens >= 15


def test_an_answer_is_not_learnt_before_it_is_given_to_learn():
    history, answer = History(V, [END]), noise(2)
    for _ in range(3):
        drafts = history.begin([])
        list(verified((token for token in answer), drafts, len(answer), lambda token: token == END))
        assert drafts.counts.accepted_tokens == 0
    assert len(history) == 0


def test_memory_is_bounded():
    history = History(V, [END], max_tokens=1000)
    for seed in range(100):
        history.learn(noise(seed))
    assert sum(len(each) + 1 for each in history.answers) <= 1000
    assert history.answers[-1].tolist() == noise(99)
    assert tokens_per_pass(answer_with(history, noise(99))) > 10
    assert answer_with(history, noise(0)).accepted_tokens == 0


def test_an_answer_goes_on_when_the_history_forgets():
    history = History(V, [END], max_tokens=60_000)
    for seed in range(140):
        history.learn(noise(seed, 400))
    drafts = history.begin([])
    assert len(drafts.draft(noise(139, 400)[:10]))
    for seed in range(3):
        history.learn(noise(seed, 20_000))
    for at in range(10, 400, 10):
        drafts.draft(noise(139, 400)[at : at + 10])


@pytest.mark.parametrize("ids", [[-200], [V + 1], [5, -1, 6]])
def test_ids_outside_the_vocabulary_are_refused(ids):
    with pytest.raises(ValueError, match="token ids: found"):
        History(V, [END]).learn(ids)


def test_placeholders_of_features_are_not_drafted():
    drafts = NGram(V, [END]).begin([1, 5, -200, 7, 8, 9])
    assert drafts.draft([5]).tolist()[:3] == [7, 8, 9]


@pytest.mark.parametrize("most", [1, 4])
def test_as_many_tokens_as_requested(most):
    history = History(V, [END], draft_tokens=most)
    history.learn(noise(3))
    assert len(history.begin([]).draft(noise(3)[:1])) == most


def test_drafting_stops_where_it_does_not_pay():
    """Answers that share single tokens and nothing more."""
    history, random = History(V, [END]), np.random.default_rng(0)
    passes = drafted = 0
    for _ in range(200):
        counts = answer_with(history, random.integers(3, 60, 46).tolist())
        passes, drafted = passes + counts.decode_passes, drafted + counts.draft_tokens
    assert drafted / passes < 0.7


def test_passes_do_not_wait_for_drafts_that_never_come():
    history, random = History(100_000, [END]), np.random.default_rng(0)
    pauses = []
    for _ in range(20):
        answer, drafts = random.permutation(np.arange(3, 99_999))[:40].tolist(), history.begin([])
        for token in answer:
            pauses.append(drafts.pauses)
            assert not len(drafts.draft([token])) or not drafts.pauses
            drafts.record(0, 0)
    assert not any(pauses[:128])
    assert np.mean(pauses[128:]) == pytest.approx(15 / 16, abs=0.01)
    known = noise(3)
    history.learn(known)
    assert tokens_per_pass(answer_with(history, known)) > 2


def test_ngram_finds_the_end_of_the_answer_in_the_prompt():
    ngram, part = NGram(V, [END]), noise(4, 20)
    counts = answer_with(ngram, [part[3], *part[4:18], END], prompt=part)
    assert tokens_per_pass(counts) > 7
    assert answer_with(ngram, noise(5)).accepted_tokens == 0


@pytest.mark.skipif(not (SHARED / "answers").exists(), reason="no recorded answers beside the project")
def test_recorded_answers_of_eventgpt():
    rows = json.loads((SHARED / "answers" / "dsec_1s_1100.json").read_text())["rows"]
    history = History(32_001, [2])
    tokens = passes = 0
    for row in rows[:200]:
        counts = answer_with(history, row["eventgpt"])
        tokens, passes = tokens + len(row["eventgpt"]) - 1, passes + counts.decode_passes
    assert tokens / passes > 7
