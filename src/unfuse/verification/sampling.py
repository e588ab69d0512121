"""Check ``sampling``: temperature, top-p and seed do in the engine what they say.

Tokens are drawn through every way to an answer: first tokens by ``prefill``, later tokens by ``decode``, and both by
the continuous batch. The logits that they were drawn from are computed under teacher forcing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from unfuse.engines.positions import following, sampling_positions
from unfuse.engines.vllm.client import MAX_TEMPERATURE, MIN_TEMPERATURE
from unfuse.features import Features
from unfuse.records.verification_file import CheckResult
from unfuse.stages import Prefilled, Sampling
from unfuse.verification.checks import Subject
from unfuse.verification.draws import (
    Draw,
    TokenDistribution,
    is_defined_choice,
    is_outside,
    p_values,
    temperature_of,
    top_p_of,
)
from unfuse.verification.result import judged

FALSE_ALARM: Final = 1e-6
"""Chance that an engine which draws as it should fails, over all tests together (Bonferroni)."""
_NAME: Final = "sampling"
_DRAWS: Final = 48
_LATER: Final = 2
"""Later tokens of a drawn answer."""
_LONG: Final = 8
"""Tokens of a hot answer: enough to see the noise of one position again at another."""
_OWN_NOISE: Final = ("eager", "graphed")
"""Engines that draw with this project's noise, a function of seed and position."""
_TEMPERATURES: Final = (1e-3, 1e3)
_COLD: Final = (1e-45, 1e-38, 1e-6)
"""Temperatures that differ from 0 in no token; float32 rounds the first two to 0 or to a subnormal number."""
_GREEDY_ANSWERS: Final = 6
_GREEDY: Final = Sampling(ignore_eos=True)


@dataclass(slots=True)
class _Drawing:
    """Draws from one engine about one scene."""

    subject: Subject
    features: Features
    prefilled: Prefilled
    """Of the prompt, greedy."""
    position: int
    """Rotary position of the first token."""
    _rows: dict[tuple[int, ...], torch.Tensor] = field(default_factory=dict)
    _sources: dict[tuple[float, float, float, tuple[int, ...] | bytes], TokenDistribution] = field(default_factory=dict)

    def _source(self, before: tuple[int, ...], sampling: Sampling, error: float = 0.0) -> TokenDistribution:
        """Return the distribution of the token after ``before``, tokens whose logits have been computed."""
        key = sampling.temperature, sampling.top_p, error, before
        if key not in self._sources:
            logits = self.masked(self._rows[before])
            self._sources[key] = TokenDistribution(logits, sampling.temperature, sampling.top_p, error)
        return self._sources[key]

    def _compute(self, tokens: tuple[int, ...]) -> None:
        """Compute the logits after every part of an answer, by teacher forcing."""
        if tokens in self._rows:
            return
        # The last token gives the logits before it, so one more is needed for those after it.
        scored = self.subject.model.engine.score(self.prefilled, (*tokens, 0))
        for length, row in enumerate(scored):
            self._rows.setdefault(tokens[:length], row)

    def rows(self, tokens: tuple[int, ...]) -> list[NDArray[np.float64]]:
        """Return the logits of the later tokens of an answer."""
        self._compute(tokens[:-1])
        return [self.masked(self._rows[tokens[:index]]) for index in range(1, len(tokens))]

    def masked(self, logits: torch.Tensor) -> NDArray[np.float64]:
        """Return logits with the end tokens at minus infinity."""
        found = logits.detach().double().cpu().numpy().copy()
        found[list(self.subject.model.adapter.end_ids)] = -np.inf
        return found

    def prefill(self, sampling: Sampling) -> Prefilled:
        """Prefill the prompt, all of it from the cache but the last position."""
        return self.subject.model.prefill(self.subject.prepared, self.features, sampling, reuse=True)

    def first(self, sampling: Sampling) -> Draw:
        """Draw a first token by ``prefill``."""
        prefilled = self.prefill(sampling)
        # Of its own logits: a prompt is in the cache up to its last position only, and its bits may depend on that.
        logits = self.masked(prefilled.logits)
        key = sampling.temperature, sampling.top_p, 0.0, logits.tobytes()
        if key not in self._sources:
            self._sources[key] = TokenDistribution(logits, sampling.temperature, sampling.top_p)
        return Draw(token=prefilled.token_id, source=self._sources[key], seed=sampling.seed, position=self.position)

    def later(self, sampling: Sampling, count: int) -> list[Draw]:
        """Draw later tokens by ``decode``, after one and the same first token."""
        answer = replace(self.prefilled, sampling=sampling)
        return self._draws(tuple(self.subject.model.engine.decode(answer, 1 + count)), sampling)[1:]

    def together(self, samplings: Sequence[Sampling]) -> list[Draw]:
        """Draw answers of the continuous batch, each with its own seed."""
        model, answers = self.subject.model, [list[int]() for _ in samplings]
        batch = model.continuous()
        try:
            batch.add([
                model.request(
                    str(index), self.subject.prepared, self.features, max_new_tokens=1 + _LATER, sampling=each,
                    reuse=True,
                )
                for index, each in enumerate(samplings)
            ])  # fmt: skip
            while batch.unfinished:
                for output in batch.step():
                    if output.error is not None:
                        raise output.error
                    answers[int(output.request_id)].append(output.token_id)
        finally:
            batch.close()
        # A batch runs other kernels, so its logits may differ by rounding.
        error = 4 * torch.finfo(model.dtype).eps * float(self.prefilled.logits.abs().max())
        both = zip(answers, samplings, strict=True)
        return [draw for tokens, each in both for draw in self._draws(tuple(tokens), each, error)]

    def _draws(self, tokens: tuple[int, ...], sampling: Sampling, error: float = 0.0) -> list[Draw]:
        self._compute(tokens[:-1])
        return [
            Draw(
                token=token, source=self._source(tokens[:index], sampling, error), seed=sampling.seed,
                position=self.position + index, before=tokens[:index],
            )
            for index, token in enumerate(tokens)
        ]  # fmt: skip


def sampling(s: Subject, *, draws: int = _DRAWS) -> CheckResult:
    """Check that an engine draws tokens from the softmax of its logits over the temperature, cut by top-p.

    Equal seeds must give equal tokens, each position has its own noise, and temperature 0 is the argmax. The seeds are
    fixed, so a model always gives the same result.

    Args:
        s: the sample.
        draws: answers for each setting and each way to an answer.
    """
    drawing = _drawing(s)
    warm, cut, hot = _settings(drawing)
    engine = s.model.engine.name
    firsts = [drawing.first(each) for setting in (warm, cut) for each in _seeded(setting, draws)]
    laters = [d for setting in (warm, cut) for each in _seeded(setting, draws) for d in drawing.later(each, _LATER)]
    longs = [d for each in _seeded(hot, max(4, draws // 8)) for d in drawing.later(each, _LONG)]
    batched = drawing.together(_seeded(cut, max(4, draws // 2)))
    ways = {"first tokens": firsts, "later tokens": laters, "hot answers": longs, "batch": batched}
    clear = {way: [draw for draw in drawn if draw.source.has_clear_cut] for way, drawn in ways.items()}
    chances = {way: list(p_values(drawn)) for way, drawn in clear.items()}
    limit = FALSE_ALARM / max(1, sum(map(len, chances.values())))
    problems = [*_greedy(drawing), *_masked(drawing), *_repeated(drawing, cut), *_same_answers(longs)]
    for way, drawn in clear.items():
        if wrong := [draw for draw in drawn if is_outside(draw)]:
            problems.append(f"{way}: {len(wrong)} of {len(drawn)} tokens are outside of the nucleus or masked")
        elif chances[way] and min(chances[way]) < limit:
            problems.append(f"{way}: another distribution (p = {min(chances[way]):.1g})")
        if engine in _OWN_NOISE and way != "batch" and (other := [d for d in drawn if not is_defined_choice(d)]):
            problems.append(f"{way}: {len(other)} of {len(drawn)} tokens are not those of their seed and position")
    least = min((p for found in chances.values() for p in found), default=1.0)
    return judged(
        _NAME,
        not problems,
        expected="tokens of softmax(logits / temperature) within top-p, repeatable by seed; the argmax at 0",
        observed="; ".join(problems)
        or f"{', '.join(f'{len(drawn)} {way}' for way, drawn in clear.items())} as expected (least p = {least:.1g}); "
        f"temperatures {warm.temperature:.3g}, {cut.temperature:.3g}, {hot.temperature:.3g}; top-p {cut.top_p:.3g}",
        tolerance=f"exact binomial tests, false alarms {FALSE_ALARM:g} in all",
    )


def _drawing(s: Subject) -> _Drawing:
    features = s.model.encode(s.prepared)
    # Twice: the second prompt is in the cache, as those of all draws are.
    for _ in range(2):
        prefilled = s.model.prefill(s.prepared, features, _GREEDY, reuse=True)
    prompt = s.model.adapter.prompt(s.prepared, features, digest=False)
    position = int(sampling_positions(following(prompt.position_ids), prompt)[0])
    return _Drawing(s, features, prefilled, position)


def _settings(drawing: _Drawing) -> tuple[Sampling, Sampling, Sampling]:
    """Return settings at which some tokens are likely, a cut of more tokens, and most tokens of the vocabulary."""
    logits = drawing.masked(drawing.prefilled.logits)
    limits = _TEMPERATURES
    if drawing.subject.model.engine.name == "vllm":
        limits = MIN_TEMPERATURE, MAX_TEMPERATURE  # engine eager answers at others
    warm, cut, hot = (temperature_of(logits, peak, limits) for peak in (0.35, 0.15, 4 / len(logits)))
    return (
        Sampling(temperature=warm, ignore_eos=True),
        Sampling(temperature=cut, top_p=top_p_of(logits, cut, 0.6), ignore_eos=True),
        Sampling(temperature=hot, ignore_eos=True),
    )


def _seeded(setting: Sampling, count: int) -> list[Sampling]:
    return [replace(setting, seed=seed) for seed in range(1, count + 1)]


def _greedy(drawing: _Drawing) -> Iterator[str]:
    """Yield the temperatures, 0 and next to it, that give another token than the argmax."""
    for seed, temperature in enumerate((*[0.0] * _GREEDY_ANSWERS, *_COLD)):
        setting = Sampling(temperature=temperature, seed=seed, ignore_eos=True)
        prefilled = drawing.prefill(setting)
        answer = replace(drawing.prefilled, sampling=setting)
        tokens = tuple(drawing.subject.model.engine.decode(answer, 1 + _LATER))
        rows = [drawing.masked(prefilled.logits), *drawing.rows(tokens)]
        chosen = [prefilled.token_id, *tokens[1:]]
        if any(row[token] < row.max() for row, token in zip(rows, chosen, strict=True)):
            yield f"temperature {temperature:g} gives a token that is not the argmax"
            return


def _masked(drawing: _Drawing) -> Iterator[str]:
    """Yield whether an answer ends although its end tokens are masked."""
    model, most = drawing.subject.model, drawing.subject.max_new_tokens
    answer = model.decode(drawing.prefill(Sampling()), most).token_ids
    tokens = tuple(model.engine.decode(drawing.prefilled, len(answer)))
    if len(tokens) < len(answer) or set(tokens) & set(model.adapter.end_ids):
        yield "an end token is chosen although it is masked"


def _same_answers(draws: Sequence[Draw]) -> Iterator[str]:
    """Yield whether seeds share an answer, where the likeliest answer itself is too unlikely for that."""
    answers: dict[int, list[Draw]] = {}
    for draw in draws:
        answers.setdefault(draw.seed, []).append(draw)
    distinct = {tuple(draw.token for draw in answer) for answer in answers.values()}
    likeliest = max(float(np.prod([draw.source.chances.max() for draw in answer])) for answer in answers.values())
    if len(distinct) < len(answers) and likeliest * len(answers) ** 2 < FALSE_ALARM:
        yield f"{len(answers)} seeds give {len(distinct)} answers"


def _repeated(drawing: _Drawing, setting: Sampling) -> Iterator[str]:
    """Yield where equal seeds give other tokens."""
    for each in _seeded(setting, 3):
        answers = {tuple(draw.token for draw in (drawing.first(each), *drawing.later(each, _LATER))) for _ in range(2)}
        if len(answers) > 1:
            yield "equal seeds give other tokens"
            return
