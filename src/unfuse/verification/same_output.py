"""Check ``same-output``: the stages compute the logits and tokens of the model's own fused ``generate``.

Equal tokens can hide different logits, and a token that differs ends a comparison of tokens. So all logits are compared
at every position, on two answers: the fused call's own tokens, and the tokens that the stages wrote. In bfloat16 and
float16 rounding hides small faults, so a float32 copy of the model is compared too.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy, deepcopy
from dataclasses import dataclass
from typing import Any, Final

import torch

from unfuse.adapters.base import FusedOutput
from unfuse.adapters.structure import quantisation
from unfuse.engines.eager import EagerEngine
from unfuse.errors import UnfuseError
from unfuse.measure.memory import available_bytes
from unfuse.records.verification_file import CheckResult
from unfuse.staged_model import StagedModel
from unfuse.stages import Prepared, Sampling
from unfuse.unavailable import Unavailable
from unfuse.verification.checks import Subject
from unfuse.verification.result import judged

LOGIT_CAP: Final = {torch.float32: 1e-3, torch.bfloat16: 0.5, torch.float16: 0.1}
"""Largest tolerance of a logit by dtype, however much two kernels of the model differ."""
_FACTOR: Final = 4
"""Tolerance of a logit, as a multiple of the difference between two computations of the fused call."""
_ROUNDINGS: Final = {torch.float32: 32.0, torch.bfloat16: 1.0, torch.float16: 1.0}
"""Least tolerance of a logit, in roundings of the largest logit: two computations may differ nowhere by chance."""
_GREEDY: Final = Sampling()


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputComparison:
    """The stages of a model beside its fused call, in one dtype."""

    dtype: str
    tokens: int
    """Tokens of the fused call."""
    difference: float
    """Largest difference of a logit; infinite if one is not finite or the numbers of logits differ."""
    limit: float
    """Tolerance of a logit."""
    near_ties: tuple[str, ...] = ()
    """Tokens of the stages that are the fused call's second choice, within the tolerance."""
    problems: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The comparison as one sentence."""
        found = "; ".join(self.problems) or ("; ".join(self.near_ties) if self.near_ties else "equal tokens")
        return f"{self.dtype}: {self.tokens} tokens, {found}, logits differ by at most {self.difference:.2g}"


def same_output(s: Subject) -> CheckResult:
    """Compare all logits at every position of the fused call's answer, and of the answer of the stages.

    The tolerance is measured on the fused call alone: the call for one prompt and the call for a batch of two run
    different kernels. So an error of the stages does not widen it. A token of the stages may differ from the most
    likely token of the fused call only by less than the tolerance, and in float32 not at all.
    """
    found = [compare(s.model, s.prepared, s.max_new_tokens)]
    left_out = ""
    if s.model.dtype != torch.float32:
        twin = float32_copy(s.model)
        if isinstance(twin, Unavailable):
            left_out = f"; float32: not compared, {twin.reason}"
        else:
            found.append(compare(twin, twin.adapter.upload(s.prepared), s.max_new_tokens))
    return judged(
        "same-output",
        all(one.tokens and not one.problems for one in found),
        expected=f"the {found[0].tokens} tokens of the fused generate, and its logits at every position",
        observed="; ".join(one.text for one in found) + left_out,
        tolerance="; ".join(_rule(one) for one in found),
    )


def _rule(found: OutputComparison) -> str:
    exact = found.dtype == "float32"
    return f"{found.dtype}: tokens exact{'' if exact else ' but for near ties'}, logits {found.limit:.2g}"


def compare(model: StagedModel, prepared: Prepared, max_new_tokens: int) -> OutputComparison:
    """Compare the stages with the fused call on one sample, in the model's dtype."""
    prefilled = model.prefill(prepared, model.encode(prepared))
    written = model.decode(prefilled, max_new_tokens).token_ids
    fused = _fused(model, prepared, max_new_tokens)
    limit = logit_limit(model, prepared, fused)
    problems: list[str] = []
    near_ties: list[str] = []
    if not written:
        written, problems = (prefilled.token_id,), ["decode gives no token"]
    difference = _largest_difference(model.engine.score(prefilled, fused.token_ids), fused.logits)
    if written != fused.token_ids:
        if problem := _wrong_length(written, max_new_tokens, model.adapter.end_ids):
            problems.append(problem)
        forced = _fused(model, prepared, len(written), written)
        scored = model.engine.score(prefilled, forced.token_ids)
        difference = max(difference, _largest_difference(scored, forced.logits))
        exact = model.dtype == torch.float32
        for text, margin in _other_choices(forced, fused):
            near = not exact and margin <= limit
            (near_ties if near else problems).append(f"{'near tie' if near else 'difference'} {text}")
    if not difference <= limit:
        problems.append(f"logits differ by more than {limit:.2g}")
    return OutputComparison(
        dtype=str(model.dtype).removeprefix("torch."),
        tokens=len(fused.token_ids),
        difference=difference,
        limit=limit,
        near_ties=tuple(near_ties[:3]),
        problems=tuple(problems[:3]),
    )


def logit_limit(model: StagedModel, prepared: Prepared, fused: FusedOutput) -> float:
    """Return the tolerance of a logit: how far two computations of the fused call differ, within stated bounds.

    Args:
        model: loaded.
        prepared: the sample.
        fused: the fused call for the sample alone, with logits.
    """
    assert fused.logits is not None
    least = _ROUNDINGS[model.dtype] * torch.finfo(model.dtype).eps * float(fused.logits.abs().max())
    try:
        batch = _fused_rows(model, [prepared, prepared], len(fused.token_ids))[0]
    except (UnfuseError, RuntimeError):
        return min(least, LOGIT_CAP[model.dtype])  # a family without batches
    assert batch.logits is not None
    pairs = list(zip(fused.token_ids, batch.token_ids, strict=False))
    # From the first different token on, the logits follow different texts.
    same = next((at for at, (one, other) in enumerate(pairs) if one != other), len(pairs) - 1) + 1
    measured = _largest_difference(batch.logits[:same], fused.logits[:same])
    return min(max(_FACTOR * measured, least), LOGIT_CAP[model.dtype])


def float32_copy(model: StagedModel) -> StagedModel | Unavailable:
    """Return a copy of a model with float32 weights and engine ``eager``, or the reason why there is none."""
    network = model.adapter.model
    if (method := quantisation(network)) is not None:
        return Unavailable(f"the weights are quantised by {method}")
    if len({parameter.device for parameter in network.parameters()}) > 1:
        return Unavailable("the weights are on several devices")
    # The copy is made in the model's dtype, and then widened one tensor after the other.
    needed = sum(4 * parameter.numel() + parameter.nbytes for parameter in network.parameters())
    available = available_bytes(model.device)
    if available is not None and needed > available:
        return Unavailable(f"the copy needs {needed / 1e9:.1f} GB, and {available / 1e9:.1f} GB are free")
    shared: Any = model.adapter.preprocessor
    adapter = deepcopy(model.adapter, {id(shared): shared})
    adapter.model.float()
    twin = copy(model)
    twin.adapter, twin.engine, twin.drafter = adapter, EagerEngine(adapter.language), None
    return twin


def _fused(model: StagedModel, prepared: Prepared, tokens: int, forced: Sequence[int] | None = None) -> FusedOutput:
    return _fused_rows(model, [prepared], tokens, forced)[0]


def _fused_rows(
    model: StagedModel, prepared: Sequence[Prepared], tokens: int, forced: Sequence[int] | None = None
) -> list[FusedOutput]:
    return model.adapter.fused_generate(prepared, max_new_tokens=tokens, sampling=_GREEDY, logits=True, forced=forced)


def _wrong_length(written: Sequence[int], limit: int, ends: Sequence[int]) -> str | None:
    """Return a sentence on an answer that stopped without a reason, or went on after an end token."""
    if any(token in ends for token in written[:-1]):
        return f"{len(written)} tokens that go on after an end token"
    if len(written) < limit and (not written or written[-1] not in ends):
        return f"{len(written)} tokens without an end token, of at most {limit}"
    return None


def _other_choices(forced: FusedOutput, fused: FusedOutput) -> list[tuple[str, float]]:
    """Return each token of the stages that is not the fused call's first choice, as text, with its margin.

    Args:
        forced: the fused call, forced to write the tokens of the stages.
        fused: the fused call.
    """
    assert forced.logits is not None
    found = []
    for at, (token, row) in enumerate(zip(forced.token_ids, forced.logits, strict=True)):
        best = int(row.argmax())
        if best != token:
            margin = float(row[best] - row[token])
            text = f"at token {at}: {token} (logit {row[token]:.5f}) against {best} (logit {row[best]:.5f})"
            found.append((f"{text}, margin {margin:.5f}", margin))
    if not found:
        found.append((f"{len(forced.token_ids)} tokens instead of {len(fused.token_ids)}", float("inf")))
    return found


def _largest_difference(ours: torch.Tensor, theirs: torch.Tensor | None) -> float:
    """Return the largest difference of two logits; infinite if they cannot be compared."""
    if theirs is None or ours.shape != theirs.shape or not len(ours):
        return float("inf")
    difference = float((ours - theirs).abs().max())
    return difference if difference == difference else float("inf")
