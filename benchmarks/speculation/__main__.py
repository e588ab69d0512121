"""Measure decoding with drafts from history, with recorded acceptance, on EventGPT-7B's architecture on one GPU.

The weights are random. Recorded tokens take the place of the model's choice, so that a draft is accepted where the real
model would have accepted it, and every pass does its full work. Without drafts (off), equally many tokens are decoded.

    python -m benchmarks.speculation --answers FOLDER --out FOLDER    the table, and every raw value as JSON
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.speculation.answers import scenarios
from benchmarks.stage4.case import GREEDY, Case, make_case, staged
from unfuse.engines.graphed.engine import GraphedEngine
from unfuse.measure.clock import paused_gc
from unfuse.measure.environment import environment
from unfuse.speculation.drafter import MAX_DRAFT, Drafts, SpeculationCounts
from unfuse.speculation.history import History
from unfuse.staged_model import StagedModel
from unfuse.stages import Prefilled

HF_ANSWERS = 20
DRAFTED = (0, 1, 3, 7, 11, MAX_DRAFT)


@dataclass
class Perfect:
    """Drafts of a known answer, always of one size."""

    answer: Sequence[int]
    size: int
    counts: SpeculationCounts = field(default_factory=SpeculationCounts)
    position: int = 0
    pauses: bool = False

    def draft(self, new_tokens: Sequence[int]) -> Sequence[int]:
        """See ``Drafts.draft``."""
        self.position += len(new_tokens)
        return self.answer[self.position :][: self.size]

    def record(self, drafted: int, accepted: int) -> None:
        """See ``Drafts.record``."""
        self.counts.drafted.append(drafted)
        self.counts.accepted.append(accepted)


class Subject:
    """The model, its prompt, and forced answers."""

    def __init__(self, case: Case, model: StagedModel):
        self.case, self.model = case, model
        engine = model.engine
        assert isinstance(engine, GraphedEngine), model.notes
        assert engine.draft_support.faster, engine.draft_support.note
        self.engine = engine
        self.features = model.encode(case.prepared)
        self.prefilled = model.prefill(case.prepared, self.features, GREEDY)

    def decode(self, answer: Sequence[int], drafts: Drafts, prefilled: Prefilled | None = None) -> int:
        """Decode a recorded answer by passes over drafted tokens; return the number of new tokens."""
        megakernel = self.engine._runner.megakernel
        assert megakernel is not None
        run = self.engine._speculative_run(megakernel, prefilled or self.prefilled, len(answer), drafts)
        run.force(answer)
        return 1 + sum(1 for _ in run.tokens())

    def off(self, answer: Sequence[int]) -> int:
        """Decode equally many tokens without drafts."""
        return sum(1 for _ in self.engine.decode(self.prefilled, len(answer)))


def seconds(work: Any) -> float:
    """Return the time of a call, synchronised before and after."""
    torch.cuda.synchronize()
    start = time.perf_counter_ns()
    work()
    torch.cuda.synchronize()
    return (time.perf_counter_ns() - start) / 1e9


def measure_scenario(subject: Subject, answers: list[list[int]]) -> dict[str, Any]:
    """Decode answers one after the other; the history has seen those before."""
    history = History(32000, subject.case.adapter.end_ids)
    times, counts, known = [], SpeculationCounts(), 0
    seen: set[tuple[int, ...]] = set()
    for answer in answers:
        known += tuple(answer) in seen
        seen.add(tuple(answer))
        drafts = history.begin([])
        times.append(seconds(lambda answer=answer, drafts=drafts: subject.decode(answer, drafts)))
        history.learn(answer)
        counts.drafted += drafts.counts.drafted
        counts.accepted += drafts.counts.accepted
        counts.drafting_s += drafts.counts.drafting_s
    tokens = sum(len(answer) - 1 for answer in answers)
    return {
        "answers": len(answers),
        "tokens": tokens,
        "ms_per_token": 1e3 * sum(times) / tokens,
        "known_before": known,
        "tokens_per_pass": 1 + counts.accepted_tokens / counts.decode_passes,
        "acceptance_rate": counts.accepted_tokens / counts.draft_tokens if counts.draft_tokens else None,
        "drafting_us_per_pass": 1e6 * counts.drafting_s / counts.decode_passes,
        "histogram": [counts.accepted.count(accepted) for accepted in range(MAX_DRAFT + 1)],
        "answer_ms": [1e3 * value for value in times],
    }


def measure_off(subject: Subject, answers: list[list[int]]) -> dict[str, Any]:
    """Decode equally many tokens without drafts."""
    times = [seconds(lambda answer=answer: subject.off(answer)) for answer in answers]
    tokens = sum(len(answer) - 1 for answer in answers)
    return {"ms_per_token": 1e3 * sum(times) / tokens, "answer_ms": [1e3 * value for value in times]}


def measure_passes(subject: Subject, repeats: int) -> dict[str, float]:
    """Return the median time of a pass in ms, by the number of drafted tokens, all of which are accepted."""
    answer = np.random.default_rng(1).integers(1000, 30000, 1 + 16 * 40).tolist()
    found = {}
    for size in DRAFTED:
        times = []
        for _ in range(repeats):
            drafts = Perfect(answer, size)
            time_s = seconds(lambda drafts=drafts: subject.decode(answer, drafts))
            times.append(1e3 * time_s / drafts.counts.decode_passes)
        found[str(size)] = median(times)
    return found


def measure_whole(subject: Subject, answers: list[list[int]]) -> dict[str, Any]:
    """Encode, prefill and decode every answer; return the times in ms."""
    history = History(32000, subject.case.adapter.end_ids)
    model, case = subject.model, subject.case

    def work(answer: list[int], drafts: Drafts) -> None:
        features = model.encode(case.prepared)
        subject.decode(answer, drafts, model.prefill(case.prepared, features, GREEDY))

    times = []
    for answer in answers:
        drafts = history.begin([])
        times.append(1e3 * seconds(lambda answer=answer, drafts=drafts: work(answer, drafts)))
        history.learn(answer)
    return {"median_ms": median(times), "answer_ms": times}


def measure_hugging_face(subject: Subject, answers: list[list[int]]) -> dict[str, Any]:
    """Run the model's own ``generate`` from pixels, with as many tokens as each answer has."""
    case = subject.case

    def work(answer: list[int]) -> None:
        case.adapter.fused_generate([case.prepared], max_new_tokens=len(answer), sampling=GREEDY)

    work(answers[0])
    times = [1e3 * seconds(lambda answer=answer: work(answer)) for answer in answers[:HF_ANSWERS]]
    return {"median_ms": median(times), "answer_ms": times}


def measure_idle(subject: Subject) -> dict[str, float]:
    """Return, in microseconds, the time between two passes and the parts of a pass, as the profiler sees them."""
    answer = np.random.default_rng(2).integers(1000, 30000, 200).tolist()
    drafts = Perfect(answer, 7)
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        subject.decode(answer, drafts)
        torch.cuda.synchronize()
    events = sorted((e for e in profile.events() if e.device_time), key=lambda e: e.time_range.start)
    spans: dict[str, list[float]] = {}
    gaps, idle, last, waited = [], [], None, 0.0
    for event in events:
        name, span = event.name, event.time_range
        spans.setdefault(name[:40], []).append(span.end - span.start)
        if last is not None:
            gaps.append(span.start - last)
        if "receive_draft" in name:
            waited = span.end - span.start
            if last is not None:
                idle.append(span.start - last + waited)
        last = span.end
    parts = {name: median(values) for name, values in spans.items() if len(values) > 5}
    return {"idle between passes": median(idle), **parts}


def differing_bits(subject: Subject, answers: list[list[int]]) -> tuple[int, int]:
    """Return how many logit values differ in a bit between passes and one-token steps, and how many were compared."""
    history = History(32000, subject.case.adapter.end_ids)
    different = compared = 0
    for answer in answers:
        ids = answer[:-1] if answer[-1] == 2 else answer
        off = subject.engine.score(subject.prefilled, ids)
        on = subject.engine.score(subject.prefilled, ids, history.begin([]))
        history.learn(answer)
        different += int((off.view(torch.int32) != on.view(torch.int32)).sum())
        compared += off.numel()
    return different, compared


def history_bytes() -> int:
    """Return the size of an index over a million tokens."""
    history, random = History(32000, [2]), np.random.default_rng(0)
    answers = [random.integers(3, 32000, 45).tolist() for _ in range(300)]
    for _ in range(1_000_000 // 46 - 1):
        part = answers[random.integers(300)]
        cut = int(random.integers(45))
        history.learn([*part[:cut], *answers[random.integers(300)][cut:]])
    return history._index.nbytes


def lines(found: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the table."""
    yield f"**{found['about']['device_name']}**, bfloat16, random weights, acceptance recorded with nf4 weights,"
    yield "greedy, prompt of 636 positions."
    yield ""
    yield "| answers | off, ms a token | history, ms a token | tokens a pass | known before |"
    yield "|---|--:|--:|--:|--:|"
    for name, row in found["scenarios"].items():
        off = found["off"].get(name, {}).get("ms_per_token")
        off_text = "" if off is None else f"{off:.3f}"
        known = f"{row['known_before']} of {row['answers']}"
        yield f"| {name} | {off_text} | {row['ms_per_token']:.3f} | {row['tokens_per_pass']:.2f} | {known} |"
    yield ""
    yield "| pass with drafted tokens | " + " | ".join(found["passes"]) + " |"
    yield "|---|" + "--:|" * len(found["passes"])
    yield "| ms | " + " | ".join(f"{value:.2f}" for value in found["passes"].values()) + " |"
    yield ""
    whole, hf = found["whole"]["median_ms"], found["hugging_face"]["median_ms"]
    yield f"Encode, prefill and decode, median of 200: {whole:.1f} ms; Hugging Face `generate`: {hf:.1f} ms"
    yield f"({hf / whole:.1f} times, median of {len(found['hugging_face']['answer_ms'])})."
    yield f"Idle between two passes: {found['idle']['idle between passes']:.0f} us."
    if "bits" in found:
        yield f"Differing logit values: {found['bits'][0]:,} of {found['bits'][1]:,}."
    yield f"History of a million tokens: {found['history_bytes'] / 1e6:.0f} MB."


@torch.no_grad()
def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--answers", type=Path, required=True, help="folder of recorded answers")
    parser.add_argument("--out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--repeats", type=int, default=7, help="of a pass")
    parser.add_argument("--bits", type=int, default=0, help="answers whose logits are compared bit for bit")
    arguments = parser.parse_args()
    case = make_case(smoke=False)
    subject = Subject(case, staged(case.adapter, "graphed"))
    lists = scenarios(arguments.answers)
    first = next(iter(lists.values()))
    for answer in first[:5]:
        subject.decode(answer, Perfect(answer, 7))
        subject.off(answer)
    found: dict[str, Any] = {"about": environment(case.adapter.device), "off": {}, "scenarios": {}}
    gc.collect()
    with paused_gc():
        for name, answers in lists.items():
            if len(answers) <= 200:
                found["off"][name] = measure_off(subject, answers)
            found["scenarios"][name] = measure_scenario(subject, answers)
            print(name, {k: v for k, v in found["scenarios"][name].items() if k != "answer_ms"}, flush=True)
        found["passes"] = measure_passes(subject, arguments.repeats)
        found["whole"] = measure_whole(subject, first)
        found["hugging_face"] = measure_hugging_face(subject, first)
        found["idle"] = measure_idle(subject)
        if arguments.bits:
            found["bits"] = differing_bits(subject, lists["EventGPT, all 1,100"][: arguments.bits])
    found["history_bytes"] = history_bytes()
    text = "\n".join(lines(found))
    print(text)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "table.md").write_text(text + "\n", encoding="utf-8")
        (arguments.out / "table.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
