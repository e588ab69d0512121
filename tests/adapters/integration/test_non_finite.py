"""NaN and infinity in every family: no answer, and the stage in which they began."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.adapters import families
from tests.engines.graphed.conftest import few_programs  # noqa: F401 - a fixture
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.engines.unsupported import Unsupported
from unfuse.errors import NonFiniteError
from unfuse.staged_model import StagedModel
from unfuse.stages import Sampling
from unfuse.verification.watch import watch_vision

NAN, INFINITY = float("nan"), float("inf")
QUESTION = "What moves?"
SAMPLED = Sampling(temperature=1.0, seed=3)
FREE = Sampling(ignore_eos=True)


@contextmanager
def spoilt(weight, value, row=slice(None)):
    """While the body runs, some of a weight have another value."""
    before = weight.detach().clone()
    with torch.no_grad():
        weight[row] = value
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(before)


def last_matrix(module):
    return [parameter for parameter in module.parameters() if parameter.dim() > 1][-1]


def answers(family, prepared, features):
    """Every way to an answer, by name."""
    staged, batch = family.staged, family.staged.continuous(2)

    def continuous():
        batch.add([staged.request("a", prepared, features, max_new_tokens=4)])
        while batch.unfinished:
            for output in batch.step():
                if output.error is not None:
                    raise output.error

    return {
        "greedy": lambda: staged.decode(staged.prefill(prepared, features), 4),
        "sampled": lambda: staged.decode(staged.prefill(prepared, features, SAMPLED), 4),
        "fused": lambda: staged.fused(prepared, 4, FREE),
        "fused, sampled": lambda: staged.fused(prepared, 4, SAMPLED),
        "continuous": continuous,
    }


def stages_of(family, prepared, features):
    """The stage that each way to an answer names."""
    found = {}
    for name, answer in answers(family, prepared, features).items():
        with pytest.raises(NonFiniteError, match="are not finite: found .*, expected finite values") as caught:
            answer()
        found[name] = caught.value.stage
    return found


@pytest.mark.parametrize("value", [NAN, INFINITY])
def test_features(family, value):
    prepared = family.prepare(2, QUESTION)
    vision = family.adapter.vision_modules()
    sound = family.staged.encode(prepared)
    with watch_vision(vision) as calls:
        family.staged.encode(prepared)
    used = [module for name, module in vision.items() if calls.by_name[name]]
    with spoilt(last_matrix(used[-1]), value):
        with pytest.raises(NonFiniteError, match=r"^encode: features are not finite: found .* of [\d,]+ values"):
            family.staged.encode(prepared)
        with pytest.raises(NonFiniteError, match=r"^encode: "):
            family.staged.encode_batch([prepared, prepared])
        for sampling in (Sampling(), SAMPLED):
            with pytest.raises(NonFiniteError, match=r"^encode: "):
                family.staged.fused(prepared, 4, sampling)
        # The features of before are sound.
        assert family.staged.decode(family.staged.prefill(prepared, sound), 4).token_ids
    family.staged.encode(prepared)


def test_logits_of_the_prompt(family):
    prepared = family.prepare(2, QUESTION)
    features = family.staged.encode(prepared)
    language = family.adapter.language
    layer = next(p for name, p in language.decoder.named_parameters() if ".q_proj.weight" in name and "layers" in name)
    with spoilt(layer, NAN, 0):
        assert set(stages_of(family, prepared, features).values()) == {"prefill"}
    head = language.head.weight
    if head is not language.embed.weight:
        for value in (INFINITY, -INFINITY, NAN):
            with spoilt(head, value, (3, 0)):
                assert set(stages_of(family, prepared, features).values()) == {"prefill"}
    assert family.staged.fused(prepared, 4, FREE).output_tokens == 4


@contextmanager
def nan_after_the_prompt(decoder):
    """While the body runs, a pass over one token gives NaN, as an overflow at a later position does."""

    def spoil(_, args, output):
        if output.last_hidden_state.shape[1] == 1:
            output.last_hidden_state = torch.full_like(output.last_hidden_state, NAN)
        return output

    handle = decoder.register_forward_hook(spoil)
    try:
        yield
    finally:
        handle.remove()


def test_logits_of_a_later_token(family):
    """The answer's first token is sound, and the second is none."""
    prepared = family.prepare(2, QUESTION)
    staged = family.staged
    features = staged.encode(prepared)
    prefilled = staged.prefill(prepared, features, FREE)
    with nan_after_the_prompt(family.adapter.language.decoder):
        tokens = staged.engine.decode(prefilled, 4)
        assert next(tokens) == prefilled.token_id
        with pytest.raises(NonFiniteError, match=r"^decode: logits are not finite"):
            next(tokens)
        with pytest.raises(NonFiniteError, match=r"^decode: .* at new token 2 of 4"):
            staged.fused(prepared, 4, FREE)
        assert set(stages_of(family, prepared, features).values()) == {"decode"}
    assert staged.decode(prefilled, 4).output_tokens == 4


def test_overflow_of_float16():
    """Weights that float32 and bfloat16 hold."""
    for dtype, overflows in ((torch.float32, False), (torch.bfloat16, False), (torch.float16, True)):
        family = families.build("llava", dtype=dtype)
        prepared = family.prepare(1, QUESTION)
        with torch.no_grad():
            last_matrix(list(family.adapter.vision_modules().values())[-1]).mul_(1e5)
        if overflows:
            with pytest.raises(NonFiniteError, match=r"^encode: features are not finite: found .*float16 overflows"):
                family.staged.encode(prepared)
        else:
            family.staged.encode(prepared)


@pytest.mark.usefixtures("few_programs")
# The interpreter takes the maximum of nothing but NaN through numpy.
@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")
@pytest.mark.parametrize("name", families.FAMILIES)
def test_engine_graphed(name, tmp_path):
    """The families that it serves: first the features, then the decoder."""
    family = families.build(name)
    try:
        engine = GraphedEngine(family.adapter.language, tuning=tmp_path)
    except Unsupported as reason:
        pytest.skip(str(reason))
    staged = StagedModel(name, family.adapter, engine)
    prepared = family.prepare(1, QUESTION)
    features = staged.encode(prepared)
    bad = features.clone()
    bad.tensor[0, 0] = NAN
    with pytest.raises(NonFiniteError, match=r"^encode: features are not finite"):
        staged.prefill(prepared, bad)
    with (
        spoilt(family.adapter.language.decoder.norm.weight, INFINITY, 0),
        pytest.raises(NonFiniteError, match=r"^prefill: logits are not finite"),
    ):
        staged.prefill(prepared, features)
