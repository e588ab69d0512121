"""Count the work that each stage executes, in all threads, beside the work that the model's definition asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from unfuse.adapters.structure import quantisation
from unfuse.features import Features
from unfuse.measure.products import ProductCount, Products, counting_all_threads
from unfuse.records.work_records import CountedWork, StageProducts
from unfuse.report.counted_work import ATTENTION
from unfuse.samples import Sample
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared, Prompt, Sampling
from unfuse.unavailable import Unavailable

_T = TypeVar("_T")
TOKENS: Final = 8
"""New tokens of the counted pass. End tokens are masked, so the number of decode steps is known."""
_SAMPLING: Final = Sampling(ignore_eos=True)


def count_work(model: StagedModel, sample: Sample, *, tokens: int = TOKENS) -> CountedWork:
    """Run the stages once on a sample, untimed, and count their matrix products and convolutions.

    The kernels of quantised weights are of many kinds, so their work is not counted.

    Args:
        model: loaded, with separate stages.
        sample: the sample.
        tokens: new tokens.
    """
    if (method := quantisation(model.adapter.model)) is not None:
        return CountedWork(reason=f"the weights are quantised by {method}")
    model.preprocess(model.load(sample))  # a first call may build tables
    load, loaded = _counted(lambda: model.load(sample))
    preprocess, prepared = _counted(lambda: model.preprocess(loaded))
    nothing = Products()
    return count_prepared(model, prepared, tokens, load=_stage(nothing, load), preprocess=_stage(nothing, preprocess))


def count_prepared(
    model: StagedModel, prepared: Prepared, tokens: int = TOKENS, **stages: StageProducts
) -> CountedWork:
    """Count the work of ``encode``, ``prefill`` and ``decode``.

    Args:
        model: loaded, with separate stages.
        prepared: one sample.
        tokens: new tokens.
        stages: counts of the stages before.
    """
    # A first call captures graphs and chooses kernels.
    model.decode(model.prefill(prepared, model.encode(prepared), _SAMPLING), tokens)
    encode, features = _counted(lambda: model.encode(prepared))
    prefill, prefilled = _counted(lambda: model.prefill(prepared, features, _SAMPLING))
    decode, answer = _counted(lambda: model.decode(prefilled, tokens))
    prompt = model.adapter.prompt(prepared, features, digest=False)
    rows = model.engine.counted_rows(prompt)
    length = prompt.length if isinstance(rows, Unavailable) else rows.rows
    expected = model.adapter.expected_work(prepared, prompt, length)
    stages["encode"] = _stage(expected.encode, encode)
    if not isinstance(rows, Unavailable):
        steps = answer.output_tokens - 1
        # Step i attends to i positions more than the first.
        longer = 1 + max(steps - 1, 0) / 2 / (prompt.length + 1)
        attention = Products(batched=round(steps * (longer - 1) * expected.step.batched))
        stages["prefill"] = _stage(expected.prefill, prefill)
        stages["decode"] = _stage(expected.step * steps + attention, decode)
    return CountedWork(
        stages=stages,
        output_tokens=answer.output_tokens,
        source=expected.source,
        features_in_prompt=_in_prompt(model, prepared, features, prompt),
        attention_counted=not isinstance(rows, Unavailable) and rows.attention,
        not_counted=dict.fromkeys(("prefill", "decode"), rows.reason) if isinstance(rows, Unavailable) else {},
    )


def _counted(work: Callable[[], _T]) -> tuple[ProductCount, _T]:
    with counting_all_threads() as count:
        result = work()
    return count, result


def _stage(expected: Products, executed: ProductCount) -> StageProducts:
    return StageProducts(
        expected=_by_key(expected),
        executed=_by_key(executed.products),
        largest={_key(width): calls.most_common(1)[0][0] for width, calls in executed.calls.items()},
    )


def _by_key(products: Products) -> dict[str, int]:
    found = {_key(width): flops for width, flops in products.by_width.items()}
    return {**found, **({_key(None): products.batched} if products.batched else {})}


def _key(width: int | None) -> str:
    return ATTENTION if width is None else f"width {width}"


def _in_prompt(model: StagedModel, prepared: Prepared, features: Features, prompt: Prompt) -> bool | None:
    """Return whether the prompt holds the features unchanged; None if the family moves them."""
    positions = model.adapter.feature_positions(prepared)
    if positions is None:
        return None
    rows = prompt.inputs_embeds[0, positions]
    return rows.shape == features.tensor.shape and bool((rows == features.tensor).all())
