"""Passes over drafted tokens, with a table instead of the persistent kernel: the host's side and the kernels."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unfuse.engines.graphed.speculation import SpeculativeRun, SpeculativeStep
from unfuse.engines.sampling import TokenChooser
from unfuse.errors import NonFiniteError
from unfuse.stages import Sampling

V, H, HALF, END = 64, 64, 4, 2
PROMPT = 10
CPU = torch.device("cpu")
ENDS = torch.tensor([END])


class Table:
    """Logits that are a function of a token and its position, like those of a model; other rows are NaN."""

    def __init__(self):
        self.rows = torch.randn(V, 97, V, generator=torch.Generator().manual_seed(0))
        self.rows[:, :, END] = -9.0

    def memory(self):
        return SimpleNamespace(x=torch.zeros(16, H), count=torch.ones((), dtype=torch.int32))

    def __call__(self, tensors, memory, base_pointer):
        count = int(memory.count)
        assert int(tensors.write_position) + count <= int(tensors.capacity), "beyond the cache"
        tensors.logits.fill_(torch.nan)
        for row in range(count):
            tensors.logits[row] = self.after(int(tensors.tokens[row]), int(tensors.write_position) + row)

    def after(self, token, position):
        return self.rows[token, position % 97]


class Cache:
    def __init__(self, capacity):
        self.capacity = capacity

    def offset(self, base_pointer):
        return 0

    def reserve(self, positions, written):
        self.capacity = max(self.capacity, positions)


class LateStep(SpeculativeStep):
    """A step with passes that run when the host waits for them, in order, like work on a stream."""

    def __init__(self, *args):
        super().__init__(*args)
        self.launched = []

    def upload(self, *state):
        while self.launched:
            self.launched[-1].synchronize()
        super().upload(*state)

    def launch(self):
        event = SimpleNamespace(synchronize=lambda: self.run_until(event))
        self.launched.append(event)
        return event

    def run_until(self, event):
        while event in self.launched:
            self.launched.pop(0)
            self._run()


class Guess:
    """Draft the tokens of a known answer, some of them wrong."""

    def __init__(self, answer, wrong=0.0, seed=0, fail_at=None):
        self.answer, self.wrong, self.at, self.fail_at = answer, wrong, 0, fail_at
        self.random, self.passes = np.random.default_rng(seed), []

    pauses = False

    def draft(self, new_tokens):
        self.at += len(new_tokens)
        if self.fail_at is not None and self.at >= self.fail_at:
            raise ZeroDivisionError
        draft = np.array([*self.answer[self.at :], *[5] * 15][: self.random.integers(16)], np.int64)
        return np.where(self.random.random(len(draft)) < self.wrong, self.random.integers(-9, 2 * V), draft)

    def record(self, drafted, accepted):
        self.passes.append((drafted, accepted))


class Pausing(Guess):
    """Have no draft for some passes, and say so before."""

    def __init__(self, *given):
        super().__init__(*given)
        self.paused = self.random.random(200) < 0.5

    @property
    def pauses(self):
        return bool(self.paused[len(self.passes)])

    def draft(self, new_tokens):
        draft = super().draft(new_tokens)
        return draft[:0] if self.pauses else draft


@pytest.fixture(scope="module")
def table():
    return Table()


def step_of(table, sampling=None):
    llama = SimpleNamespace(
        device=CPU, dtype=torch.float32, heads=SimpleNamespace(head_dim=2 * HALF), embedding=torch.zeros(V, H),
        head=SimpleNamespace(weight=torch.zeros(V, H)), inv_freq=torch.ones(HALF),
        axes=torch.zeros(HALF, dtype=torch.int32), rotary_scaling=1.0,
    )  # fmt: skip
    chooser = None if sampling is None else TokenChooser(sampling, ENDS, CPU)
    return LateStep(llama, table, torch.zeros(1), ENDS, chooser, lambda run: run)


def prefilled_of(first=7, capacity=400, sampling=Sampling()):  # noqa: B008
    state = SimpleNamespace(cache=Cache(capacity), position=PROMPT)
    return SimpleNamespace(state=state, prompt_tokens=PROMPT, token_id=first, sampling=sampling)


def answer_of(table, most, first=7, sampling=None):
    """Decode token by token."""
    tokens = [first]
    chooser = TokenChooser(sampling or Sampling(), ENDS, CPU)
    while len(tokens) < most:
        position = PROMPT + len(tokens) - 1
        tokens.append(int(chooser(table.after(tokens[-1], position), position + 1)))
        if tokens[-1] == END:
            break
    return tokens


@pytest.mark.parametrize("wrong", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("most", [1, 2, 3, 17, 18, 34])
def test_tokens_are_those_of_single_steps(table, most, wrong):
    expected, step = answer_of(table, most), step_of(table)
    drafts = Guess(expected, wrong)
    assert [7, *SpeculativeRun(step, prefilled_of(), most, drafts).tokens()] == expected
    assert sum(accepted + 1 for _, accepted in drafts.passes) == most - 1


@pytest.mark.parametrize("seed", range(3))
def test_a_pass_that_does_not_wait_takes_no_draft_from_the_pass_before(table, seed):
    """Passes run as late as they can, so a draft that is written too early replaces another."""
    expected, step = answer_of(table, 40), step_of(table)
    drafts = Pausing(expected, 0.0, seed)
    assert [7, *SpeculativeRun(step, prefilled_of(), 40, drafts).tokens()] == expected
    # The draft of a pass is made before the pass ahead of it is recorded.
    assert all(not drafted for (drafted, _), paused in zip(drafts.passes[1:], drafts.paused, strict=False) if paused)
    assert sum(drafted for drafted, _ in drafts.passes) > 0


def test_each_answer_is_sampled_with_its_own_settings(table):
    step = step_of(table, Sampling(temperature=1.0))
    for seed in range(3):
        sampling = Sampling(temperature=2.0, seed=seed)
        expected = answer_of(table, 40, sampling=sampling)
        run = SpeculativeRun(step, prefilled_of(sampling=sampling), 40, Guess(expected, 0.1))
        assert [7, *run.tokens()] == expected


@pytest.mark.parametrize("end", range(1, 18))
def test_an_end_token_at_every_position_of_a_draft(table, end):
    forced = [*[5] * end, END, *[5] * 20]
    run = SpeculativeRun(step_of(table), prefilled_of(), 60, Guess([7, *forced]))
    run.force([7, *forced])
    assert list(run.tokens()) == forced[: end + 1]


@pytest.mark.parametrize("wrong", [0.0, 0.3])
def test_scores_of_passes_are_those_of_single_tokens(table, wrong):
    forced = [7, *np.random.default_rng(5).integers(3, V, 30).tolist()]
    run = SpeculativeRun(step_of(table), prefilled_of(), len(forced), Guess(forced, wrong))
    run.force(forced)
    found = torch.cat(list(run.scores()))
    assert torch.equal(found, torch.stack([table.after(token, PROMPT + at) for at, token in enumerate(forced[:-1])]))


def test_answers_take_turns_and_are_left(table):
    step = step_of(table)
    expected = [answer_of(table, 50, first)[1:] for first in (7, 9)]

    def begin(index):
        first = (7, 9)[index]
        return SpeculativeRun(step, prefilled_of(first), 50, Guess([first, *expected[index]], 0.2, index)).tokens()

    left = begin(0)
    next(left)
    left.close()
    runs, written = [begin(0), begin(1)], [[], []]
    for turn in range(2 * 49):
        written[turn % 2].append(next(runs[turn % 2]))
    assert written == expected


def test_a_cache_grows_only_for_an_answer_that_needs_it(table):
    small = prefilled_of(capacity=PROMPT + 1)
    expected = answer_of(table, 2)
    assert [7, *SpeculativeRun(step_of(table), small, 2, Guess(expected)).tokens()] == expected
    assert small.state.cache.capacity == PROMPT + 1
    expected = answer_of(table, 60)
    assert [7, *SpeculativeRun(step_of(table), small, 60, Guess(expected, 0.2)).tokens()] == expected
    assert small.state.cache.capacity > PROMPT + 60


@pytest.mark.parametrize("at", [1, 2, 20])
def test_a_drafter_that_fails_leaves_no_pass_waiting(table, at):
    step, expected = step_of(table), answer_of(table, 60)
    with pytest.raises(ZeroDivisionError):
        list(SpeculativeRun(step, prefilled_of(), 60, Guess(expected, fail_at=at)).tokens())
    assert [7, *SpeculativeRun(step, prefilled_of(), 60, Guess(expected)).tokens()] == expected


def test_a_kernel_that_accepts_one_token_too_many_is_noticed(table, monkeypatch):
    """The control of the comparisons above."""
    step, expected = step_of(table), answer_of(table, 60)
    wait = SpeculativeRun._wait

    def shifted(run):
        result = wait(run)
        result.tokens[-1:] = [5] if result.tokens[-1] != 5 else [6]
        return result

    monkeypatch.setattr(SpeculativeRun, "_wait", shifted)
    assert [7, *SpeculativeRun(step, prefilled_of(), 60, Guess(expected)).tokens()] != expected


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, seed=4)], ids=["greedy", "drawn"])
def test_logits_that_are_not_finite_end_the_answer(table, value, sampling):
    """At every token of an answer, within a draft or after it; the tokens before are given."""
    answer = answer_of(table, 30, sampling=sampling)
    for bad in (1, 2, 7, 16, 20):
        rows, place = table.rows, (answer[bad - 1], (PROMPT + bad - 1) % 97, 5)
        before = float(rows[place])
        rows[place] = value
        try:
            step = step_of(table, sampling if sampling.temperature else None)
            run = SpeculativeRun(step, prefilled_of(sampling=sampling), len(answer), Guess(answer, wrong=0.1))
            tokens = []
            with pytest.raises(NonFiniteError, match="^decode: logits are not finite"):
                tokens.extend(run.tokens())
        finally:
            rows[place] = before
        assert tokens == answer[1:bad]
