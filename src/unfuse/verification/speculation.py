"""Check that drafted tokens change the number of decode passes, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import torch

from unfuse.drafters import pick_drafter, vocabulary_of
from unfuse.engines import Engine
from unfuse.records.verification_file import CheckResult
from unfuse.speculation.drafter import MAX_DRAFT, Drafter, SpeculationCounts
from unfuse.speculation.settings import SpeculationSettings
from unfuse.stages import Prefilled, Sampling
from unfuse.verification.checks import Subject
from unfuse.verification.result import judged, skipped

_NAME: Final = "speculation-equal"
_EXPECTED: Final = "tokens and logits with drafts equal those without, bit for bit"
_KINDS: Final = {"right": 0, "partly wrong": 3, "wrong": 1}
"""Kinds of drafts; every n-th token of a draft is wrong, and none for 0."""
_SLOW_TOKENS: Final = 16
"""New tokens for an engine that drafts do not make faster."""


class GuessedDrafts:
    """Drafts of a known answer, some of whose tokens are wrong. Implements ``Drafts``."""

    pauses = False

    def __init__(self, answer: Sequence[int], wrong_every: int, vocabulary: int):
        self.counts = SpeculationCounts()
        self._answer, self._wrong_every, self._vocabulary = answer, wrong_every, vocabulary
        self._position = 0

    def draft(self, new_tokens: Sequence[int]) -> list[int]:
        """See ``Drafts.draft``."""
        self._position += len(new_tokens)
        following = self._answer[self._position : self._position + MAX_DRAFT]
        every = self._wrong_every
        return [
            (token + 1) % self._vocabulary if every and (self._position + index) % every == 0 else token
            for index, token in enumerate(following)
        ]

    def record(self, drafted: int, accepted: int) -> None:
        """See ``Drafts.record``."""
        self.counts.drafted.append(drafted)
        self.counts.accepted.append(accepted)


def speculation_equal(s: Subject, drafter: Drafter | None = None) -> CheckResult:
    """Check that an engine gives the bits of decoding without drafts, whatever is drafted.

    The check decodes an answer without drafts, then with right, partly wrong and wrong drafts. Tokens, logits and
    counts must fit each time, and the prompt's KV cache must be as before at the end. A drafter must not know an answer
    that it has not learnt.

    Args:
        s: the sample.
        drafter: drafter to look at; by default one that drafts from history.
    """
    engine, adapter = s.model.engine, s.model.adapter
    support = engine.draft_support
    if not support.verified:
        return skipped(_NAME, support.note, expected=_EXPECTED)
    most = s.max_new_tokens if support.faster else min(s.max_new_tokens, _SLOW_TOKENS)
    prefilled = s.model.prefill(s.prepared, s.model.encode(s.prepared), Sampling(ignore_eos=True))
    vocabulary = vocabulary_of(adapter.language.embed, adapter.language.head)
    if drafter is None:
        drafter, _ = pick_drafter(SpeculationSettings(method="history", draft_tokens=MAX_DRAFT), adapter, engine)
        assert drafter is not None
    problems = [*_differences(engine, prefilled, most, vocabulary), *_foresight(engine, prefilled, most, drafter)]
    kinds = ", ".join(_KINDS)
    return judged(
        _NAME,
        not problems,
        expected=_EXPECTED,
        observed="; ".join(problems) or f"{most} tokens with {kinds} drafts: all bits equal",
    )


def _differences(engine: Engine, prefilled: Prefilled, most: int, vocabulary: int) -> Iterator[str]:
    """Yield every difference between decoding with and without drafts."""
    tokens = tuple(engine.decode(prefilled, most))
    logits = engine.score(prefilled, tokens)
    for kind, wrong_every in _KINDS.items():
        drafts = GuessedDrafts(tokens, wrong_every, vocabulary)
        if tuple(engine.decode(prefilled, most, drafts)) != tokens:
            yield f"{kind} drafts change the tokens"
        counts = drafts.counts
        if counts.decode_passes + counts.accepted_tokens != len(tokens) - 1:
            yield (
                f"{kind} drafts: {counts.decode_passes} passes and {counts.accepted_tokens} accepted tokens for "
                f"{len(tokens) - 1} tokens"
            )
        if (kind == "wrong" and counts.accepted_tokens) or (kind == "right" and counts.accepted != counts.drafted):
            yield f"{kind} drafts: {counts.accepted_tokens} of {counts.draft_tokens} tokens accepted"
        scored = engine.score(prefilled, tokens, GuessedDrafts(tokens, wrong_every, vocabulary))
        if scored.shape != logits.shape or not torch.equal(scored, logits):
            yield f"{kind} drafts change the logits"
    if not torch.equal(engine.score(prefilled, tokens), logits):
        yield "drafts change the KV cache of the prompt"


def _foresight(engine: Engine, prefilled: Prefilled, most: int, drafter: Drafter) -> Iterator[str]:
    """Yield whether a drafter knows an answer that was decoded, but not learnt."""
    accepted = []
    for _ in range(2):
        drafts = drafter.begin(())
        for _token in engine.decode(prefilled, most, drafts):
            pass
        accepted.append(drafts.counts.accepted_tokens)
    if accepted[0] != accepted[1]:
        yield f"the drafter knows an answer that it has not learnt: {accepted[0]}, then {accepted[1]} tokens accepted"
