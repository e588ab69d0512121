import pytest
import torch

from unfuse.engines.graphed.kernels.norm_rope import begin_step
from unfuse.engines.graphed.kernels.speculation import (
    FINISHED,
    LENGTH,
    PASS,
    POSITION,
    REMAINING,
    RESULTS,
    STATE_SIZE,
    WRITTEN,
    accept_tokens,
    begin_pass,
    receive_draft,
)

T = 16
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
END = 2


def make_state(**entries):
    state = torch.zeros(STATE_SIZE, dtype=torch.int32)
    names = {"length": LENGTH, "position": POSITION, "remaining": REMAINING, "number": PASS, "finished": FINISHED}
    for name, value in {"length": 7, "position": 9, "remaining": 50, "number": 3, **entries}.items():
        state[names[name]] = value
    return state.to(DEVICE)


def pinned(values):
    tensor = torch.tensor(values, dtype=torch.int64)
    return tensor.pin_memory() if DEVICE == "cuda" else tensor


def words(number, drafted):
    return pinned([number << 32 | value for value in [len(drafted), *drafted, *[0] * (T - 1 - len(drafted))]])


class TestReceiveDraft:
    def run(self, draft, state, capacity=100):
        tokens = torch.full((T,), -1, dtype=torch.int64, device=DEVICE)
        count, write_position = (
            torch.zeros((), dtype=torch.int32, device=DEVICE),
            torch.zeros(1, dtype=torch.int32, device=DEVICE),
        )
        receive_draft(
            draft,
            tokens,
            count,
            write_position,
            state,
            torch.tensor([capacity], dtype=torch.int32, device=DEVICE),
            looks=4,
        )
        return int(count), int(write_position), tokens[1 : max(1, int(count))].tolist()

    def test_all_drafted_tokens(self):
        assert self.run(words(3, [11, 12, 13]), make_state()) == (4, 7, [11, 12, 13])

    def test_no_draft(self):
        assert self.run(words(3, []), make_state()) == (1, 7, [])

    def test_as_many_as_the_answer_may_still_get(self):
        assert self.run(words(3, [11, 12, 13]), make_state(remaining=2)) == (2, 7, [11])

    def test_as_many_as_the_cache_has_room_for(self):
        assert self.run(words(3, [11, 12, 13]), make_state(), capacity=10) == (3, 7, [11, 12])

    def test_a_host_that_does_not_answer_gives_no_draft(self):
        assert self.run(words(2, [11, 12, 13]), make_state()) == (1, 7, [])

    def test_a_draft_that_is_half_written_is_none(self):
        draft = words(3, [11, 12, 13])
        draft[2] = words(2, [0] * 3)[2]
        assert self.run(draft, make_state())[0] == 1

    def test_an_answer_that_has_ended_waits_for_nothing(self):
        assert self.run(words(2, [11]), make_state(finished=1))[0] == 0


class TestAcceptTokens:
    def run(self, tokens, chosen, state, forced=()):
        count = torch.tensor(len(tokens), dtype=torch.int32, device=DEVICE)
        on_device = torch.tensor([*tokens, *[77] * (T - len(tokens))], device=DEVICE)
        picked = torch.tensor([*chosen, *[88] * (T - len(chosen))], device=DEVICE)
        results = pinned([[0] * (T + 1)] * RESULTS)
        number = int(state[PASS])
        ends = torch.tensor([END], device=DEVICE)
        given = torch.tensor([*forced, 0], device=DEVICE)
        accept_tokens(
            on_device,
            picked,
            count,
            state,
            ends,
            given,
            torch.tensor([len(forced)], dtype=torch.int32, device=DEVICE),
            results,
        )
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        assert not tokens or (results[number % RESULTS] >> 32 == number).all()
        head, *new = (results[number % RESULTS] & 0xFFFFFFFF).tolist()
        return new[: head & 0xFF], head >> 8 & 0xFF, bool(head >> 16), int(on_device[0])

    @pytest.mark.parametrize("right", range(5))
    def test_up_to_the_first_difference(self, right):
        chosen = [11, 12, 13, 14, 15]
        tokens = [10, *chosen[:right], *[99] * (4 - right)]
        state = make_state()
        assert self.run(tokens, chosen, state) == (chosen[: right + 1], 5, False, chosen[right])
        assert state.tolist() == [8 + right, 10 + right, 49 - right, 4, 0, 1 + right, 0, 0]

    def test_a_right_token_after_a_wrong_one_is_not_accepted(self):
        assert self.run([10, 99, 12, 13], [11, 12, 13, 14], make_state())[0] == [11]

    @pytest.mark.parametrize("at", range(4))
    def test_an_end_token_inside_a_draft(self, at):
        chosen = [11, 12, 13, 14]
        chosen[at] = END
        new, _, finished, last = self.run([10, *chosen[:3]], chosen, make_state())
        assert (new, finished, last) == (chosen[: at + 1], True, END)

    @pytest.mark.parametrize("remaining", range(1, 6))
    def test_as_many_as_the_answer_may_still_get(self, remaining):
        chosen = [11, 12, 13, 14]
        state = make_state(remaining=remaining)
        new, _, finished, _ = self.run([10, 11, 12, 13], chosen, state)
        assert new == chosen[:remaining]
        assert finished == (remaining <= 4)
        assert int(state[REMAINING]) == max(0, remaining - 4)

    def test_an_answer_that_has_ended_stays_as_it_is(self):
        state = make_state(finished=1)
        before = state.tolist()
        self.run([], [], state)
        assert state.tolist() == before

    def test_forced_tokens_take_the_place_of_the_choice(self):
        state = make_state()
        state[WRITTEN] = 1
        new, *_ = self.run([10, 31, 32, 13], [11, 12, 13, 14], state, forced=[30, 31, 32])
        assert new == [31, 32, 13, 14]


@pytest.mark.parametrize("count", [1, 5, 16])
def test_embedding_and_angles_are_those_of_single_steps(count):
    torch.manual_seed(0)
    h, half, v = 256, 32, 40
    dtype = torch.bfloat16
    embedding = torch.randn(v, h, device=DEVICE).to(dtype)
    inv_freq = 1e4 ** -(torch.arange(half, device=DEVICE) / half)
    axes = torch.zeros(half, dtype=torch.int32, device=DEVICE)
    tokens = torch.randint(0, v, (T,), device=DEVICE)
    state = make_state(position=600)

    def empty(rows, columns):
        return torch.zeros(rows, columns, dtype=dtype, device=DEVICE)

    x, cosine, sine = empty(T, h), empty(T, half), empty(T, half)
    number = torch.tensor(count, dtype=torch.int32, device=DEVICE)
    begin_pass(x, cosine, sine, tokens, number, state, embedding, inv_freq, axes, 1.5)
    write_position = torch.zeros(1, dtype=torch.int32, device=DEVICE)
    for row in range(count):
        one = empty(1, h), empty(1, half), empty(1, half)
        position = torch.tensor([600 + row], dtype=torch.int32, device=DEVICE)
        length = torch.tensor([7 + row], dtype=torch.int32, device=DEVICE)
        begin_step(
            *one,
            write_position,
            tokens[row : row + 1],
            length,
            position,
            length + 9,
            embedding,
            inv_freq,
            axes,
            1.5,
            fragments=True,
        )
        for ours, theirs in zip((x, cosine, sine), one, strict=True):
            assert torch.equal(ours[row], theirs[0])
    assert not x[count:].any()
