import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.speculation.reference import verified

END = 2
answers = st.lists(st.integers(3, 6), min_size=1, max_size=40)


class FixedDrafts:
    """Draft the tokens of a guess from the answer's position on."""

    def __init__(self, guess, limit=15):
        self.guess, self.limit, self.at, self.passes = guess, limit, 0, []

    def draft(self, new_tokens):
        self.at += len(new_tokens)
        return self.guess[self.at : self.at + self.limit]

    def record(self, drafted, accepted):
        self.passes.append((drafted, accepted))


def run(answer, drafts, most):
    return list(verified((token for token in answer), drafts, most, lambda token: token == END))


@given(answers, answers, st.booleans(), st.integers(1, 50))
@examples(200)
def test_tokens_are_those_of_the_answer(answer, guess, ends, most):
    written = [*answer, END][:most] if ends else [*answer, *[3] * 50][:most]
    drafts = FixedDrafts(guess)
    assert run(written, drafts, most) == written
    assert sum(accepted + 1 for _, accepted in drafts.passes) == len(written) - 1
    assert all(0 <= accepted <= drafted <= 15 for drafted, accepted in drafts.passes)


@pytest.mark.parametrize("limit", [0, 1, 5, 15])
def test_a_right_guess_is_accepted_whole(limit):
    answer = [3 + i % 7 for i in range(40)] + [END]
    drafts = FixedDrafts(answer, limit)
    assert run(answer, drafts, 64) == answer
    assert len(drafts.passes) == -(-40 // (limit + 1))


def test_a_wrong_guess_costs_a_pass_a_token():
    drafts = FixedDrafts([9] * 50)
    run([3, 4, 5, 6, END], drafts, 64)
    assert drafts.passes == [(15, 0)] * 4


@pytest.mark.parametrize("at", range(1, 17))
def test_an_end_inside_a_draft(at):
    answer = [3] * at + [END]
    drafts = FixedDrafts([*answer, *[3] * 20])
    assert run(answer, drafts, 64) == answer
    assert sum(accepted + 1 for _, accepted in drafts.passes) == at


@pytest.mark.parametrize("most", range(1, 20))
def test_the_last_token_is_never_drafted(most):
    drafts = FixedDrafts([3] * 60)
    assert run([3] * most, drafts, most) == [3] * most
    assert all(drafted <= most - 2 for drafted, _ in drafts.passes)
