"""Check ``work``: each stage executes the work that the model's definition asks for, no more and no less."""

from __future__ import annotations

from unfuse.benchmarking.counted_work import count_work
from unfuse.measure.products import flops_text
from unfuse.records.verification_file import CheckResult
from unfuse.records.work_records import CountedWork, StageProducts
from unfuse.report.counted_work import WORK_PCT, total, work_problems
from unfuse.verification.checks import Subject
from unfuse.verification.result import judged, skipped


def work(s: Subject) -> CheckResult:
    """Count the matrix products and convolutions of every stage, in all threads of the process.

    Work is counted, whoever does it: a copy of the tower in ``prefill``, in another thread or in ``load`` is extra work
    there, and missing work in ``encode``.
    """
    counted = count_work(s.model, s.sample)
    if counted.reason is not None:
        return skipped("work", counted.reason, expected="the work of the model's definition")
    problems = work_problems(counted)
    return judged(
        "work",
        not problems,
        expected=f"{_line(counted, executed=False)}, from {counted.source}",
        observed="; ".join(problems) or _line(counted, executed=True) + _left_out(counted),
        tolerance=f"{WORK_PCT:g} % of the products of each width; load and preprocess: of encode",
    )


def _line(counted: CountedWork, *, executed: bool) -> str:
    def flops(found: StageProducts) -> str:
        return flops_text(total(found.executed if executed else found.expected))

    return ", ".join(f"{stage} {flops(found)}" for stage, found in counted.stages.items())


def _left_out(counted: CountedWork) -> str:
    attention = "" if counted.attention_counted else "; attention kernels outside of torch are not counted"
    stages = "".join(f"; {stage}: skipped, {reason}" for stage, reason in counted.not_counted.items())
    return attention + stages
