"""Rules that a run is judged by. Each is evaluated once, into one row.

Noise and drift only warn, and so does other work on the machine unless the run is strict.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from unfuse.records.schema import SampleRecord
from unfuse.report import lengths
from unfuse.report.claims import hooked_spans
from unfuse.report.counted_work import WORK_PCT, total, work_problems
from unfuse.report.device_clock import DEVICE_STAGES, MIN_READINGS, copied_clock
from unfuse.report.impossible import impossible_numbers
from unfuse.report.measured_run import MeasuredRun
from unfuse.report.price import PRICE_PCT
from unfuse.report.statistics import (
    BALANCE_PCT,
    DRIFT_PCT,
    MIN_FOR_DRIFT,
    MIN_FOR_FIRST,
    MIN_PAIRS,
    NOISE_PCT,
    SLOW_FIRST,
    UNRESOLVED_PCT,
    Drift,
    outliers,
)
from unfuse.report.text import some
from unfuse.report.verdict import CONTROL_PROTOCOL, Outcome, RuleRow, Verdict

_NOT_RECORDED = "not recorded"
_NOTHING_MEASURED = "nothing measured"


def judge(run: MeasuredRun) -> Verdict:
    """Evaluate every rule."""
    work = [_samples(run), _answers(run), _lengths(run), _same_tokens(run), _possible(run)]
    times = [_nothing_reused(run), _balance(run), _price(run), _device_clock(run)]
    machine = [_noise(run), _outliers(run), _resolution(run), _first_sample(run), _drift(run), _isolation(run)]
    return Verdict(rules=(*_protocol(run), *work, *times, *machine))


def _row(
    rule: str, holds: bool, limit: str, value: str, sentences: Sequence[str], *, otherwise: Outcome = "fail"
) -> RuleRow:
    """Return a row; it has the sentences if the rule does not hold."""
    outcome: Outcome = "pass" if holds else otherwise
    return RuleRow(rule=rule, outcome=outcome, limit=limit, value=value, sentences=() if holds else tuple(sentences))


def _skip(rule: str, limit: str, reason: str) -> RuleRow:
    return RuleRow(rule=rule, outcome="skip", limit=limit, value=reason)


def _protocol(run: MeasuredRun) -> list[RuleRow]:
    """Evaluate the rules of the run's protocol."""
    calls = run.probes.encoder_calls_after_encode
    after = f"vision modules were called {calls} times after Stage 3"
    if run.protocol == "hooked":
        return [_hooks_fired(run)]
    if run.protocol == "decoupled":
        return [_encode_once(calls, [after]), _work(run)]
    if run.protocol == CONTROL_PROTOCOL:
        count = "not counted" if calls is None else after
        control = f"protocol reencode is a control: its Stage 3 is thrown away and Stage 4 encodes again ({count})"
        found = _encode_once(calls, [control])
        if found.outcome == "fail":
            return [found]
        # A control is INVALID even if the calls were not counted.
        return [_row("protocol", False, "no control", run.protocol, [control]), found]
    return []


def _encode_once(calls: int | None, sentences: Sequence[str]) -> RuleRow:
    limit = "vision modules are not called after Stage 3"
    if calls is None:
        return _skip("encode once", limit, _NOT_RECORDED)
    return _row("encode once", calls == 0, limit, f"{calls} calls", sentences)


def _work(run: MeasuredRun) -> RuleRow:
    limit = f"each stage executes its own work within {WORK_PCT:g} %"
    counted = run.probes.counted_work
    if counted is None or counted.reason is not None:
        return _skip("work", limit, _NOT_RECORDED if counted is None else counted.reason or "")
    problems = work_problems(counted)
    executed = sum(total(stage.executed) for stage in counted.stages.values())
    return _row("work", not problems, limit, f"{executed / 1e9:.4g} GFLOP in {len(counted.stages)} stages", problems)


def _hooks_fired(run: MeasuredRun) -> RuleRow:
    blind = [r for r in run.ok if r.num_frames and not hooked_spans(r)]
    sentence = f"{len(blind)} samples on which no hook fired: {_names(blind)}"
    return _row("hooks fired", not blind, "on every sample with frames", f"{len(blind)} samples without", [sentence])


def _samples(run: MeasuredRun) -> RuleRow:
    count, failed, expected = len(run.samples), run.failed, int(run.manifest.dataset.get("num_samples", 0))
    sentences = []
    if not run.samples:
        sentences.append("no samples")
    elif count < expected:
        sentences.append(f"only {count} of {expected} samples were run")
    if failed:
        sentences.append(f"{len(failed)} of {count} samples failed: {_names(failed)}")
    limit = f"all {expected} measured" if expected else "all measured"
    return _row("samples", not sentences, limit, f"{len(run.ok)} measured, {len(failed)} failed", sentences)


def _answers(run: MeasuredRun) -> RuleRow:
    limit = "at least one token a sample"
    if not run.ok:
        return _skip("answers", limit, _NOTHING_MEASURED)
    empty = [r for r in run.ok if not r.output_tokens]
    sentence = f"{len(empty)} samples with zero output tokens: {_names(empty)}"
    return _row("answers", not empty, limit, f"{len(empty)} without a token", [sentence])


def _lengths(run: MeasuredRun) -> RuleRow:
    if not run.ok:
        return _skip("lengths", lengths.LIMIT, _NOTHING_MEASURED)
    written = [record for record in run.ok if record.output_tokens]
    faults = lengths.length_faults(run.manifest, written)
    return _row("lengths", not faults, lengths.LIMIT, f"{len(written)} answers, {len(faults)} kinds of fault", faults)


def _same_tokens(run: MeasuredRun) -> RuleRow:
    limit = "the unstaged run writes the staged run's tokens"
    compared = [r for r in run.ok if r.e2e_same_tokens is not None]
    if not compared:
        return _skip("same tokens", limit, _NOT_RECORDED)
    other = [r for r in compared if not r.e2e_same_tokens]
    sentence = f"{len(other)} samples whose unstaged run wrote other tokens: {_names(other)}"
    value = f"{len(compared) - len(other)} of {len(compared)} samples"
    return _row("same tokens", not other, limit, value, [sentence])


def _nothing_reused(run: MeasuredRun) -> RuleRow:
    limit = "a measured sample has the work of new media"
    found = run.probes.reuse
    if found is None or found.reason is not None:
        return _skip("nothing reused", limit, _NOT_RECORDED if found is None else found.reason or "")
    sentences = [f"results were reused: {finding}" for finding in found.findings]
    value = f"{len(found.findings)} findings in {len(found.stages)} stages"
    return _row("nothing reused", not sentences, limit, value, sentences)


def _balance(run: MeasuredRun) -> RuleRow:
    found = run.balance
    limit = f"stages add up to end to end within {BALANCE_PCT:g} %"
    if not run.ok:
        return _skip("stages add up", limit, _NOTHING_MEASURED)
    if not found.enough:
        sentence = f"{found.pairs} pairs of staged and end-to-end runs; at least {MIN_PAIRS} are needed to balance"
        value = f"{found.pairs} pairs are too few to say"
        return _row("stages add up", False, limit, value, [sentence])
    sentence = (
        f"stages do not add up: remainder {found.remainder_pct:+.2f} % of end to end "
        f"[{found.ci_low_pct:+.2f}, {found.ci_high_pct:+.2f}], beyond {BALANCE_PCT:g} %"
    )
    return _row("stages add up", found.adds_up, limit, f"remainder {found.text}", [sentence])


def _price(run: MeasuredRun) -> RuleRow:
    limit = f"the stages take at most {PRICE_PCT:g} % longer than a whole call"
    price = run.price
    if price.reason is not None or not price.enough or price.stages_over_call is None:
        return _skip("price of the split", limit, price.reason or f"{price.turns} turns are too few to say")
    faults = list(price.faults())
    return _row("price of the split", not faults, limit, price.stages_over_call.text, faults)


def _device_clock(run: MeasuredRun) -> RuleRow:
    limit = "device times are no host times"
    times = [[r.stages[stage].device_ms for r in run.ok if stage in r.stages] for stage in DEVICE_STAGES]
    readings = max(len(each) - each.count(None) for each in times)
    if readings < MIN_READINGS:
        return _skip("device clock", limit, f"{readings} device times of a stage; at least {MIN_READINGS} are needed")
    copied = copied_clock(run.ok)
    return _row("device clock", copied is None, limit, f"{readings} device times of a stage", [copied or ""])


def _possible(run: MeasuredRun) -> RuleRow:
    found = impossible_numbers(run)
    limit = "no number that cannot be true"
    return _row("possible numbers", not found, limit, f"{len(found)} impossible", found)


def _noise(run: MeasuredRun) -> RuleRow:
    spread, limit = run.noise_spread_pct, f"repeats of one sample spread by at most {NOISE_PCT:g} %"
    if spread is None:
        return _skip("noise", limit, _NOT_RECORDED)
    sentence = f"noise: repeats of one sample spread by {spread:.1f} % (limit {NOISE_PCT:g} %)"
    return _row("noise", spread <= NOISE_PCT, limit, f"{spread:.1f} %", [sentence], otherwise="warn")


def _outliers(run: MeasuredRun) -> RuleRow:
    count = outliers(run.probes.noise.total_host_ms) if run.probes.noise else 0
    sentence = f"noise: {count} outliers among repeats of one sample"
    return _row("outliers", not count, "none among repeats of one sample", str(count), [sentence], otherwise="warn")


def _resolution(run: MeasuredRun) -> RuleRow:
    width = run.balance.ci_high_pct - run.balance.ci_low_pct
    sentence = f"noise: the balance is resolved to {width:.0f} % only; run again on a quieter machine"
    limit = f"the balance is resolved to {UNRESOLVED_PCT:g} %"
    return _row("resolution", width <= UNRESOLVED_PCT, limit, f"{width:.0f} %", [sentence], otherwise="warn")


def _first_sample(run: MeasuredRun) -> RuleRow:
    limit = f"at most {SLOW_FIRST:g} x the median of the others"
    if len(run.total_ms) < MIN_FOR_FIRST:
        return _skip("first sample", limit, f"fewer than {MIN_FOR_FIRST} samples")
    first, others = run.total_ms[0], median(run.total_ms[1:])
    if not others:
        return _skip("first sample", limit, "the others took no time")
    times = f"{first / others:.1f} x"
    sentence = f"first sample {times} the median of the others: more warm-up?"
    return _row("first sample", first <= SLOW_FIRST * others, limit, times, [sentence], otherwise="warn")


def _drift(run: MeasuredRun) -> RuleRow:
    limit = f"no stage changes by more than {DRIFT_PCT:g} % over the run"
    judged = {name: drift for name, drift in run.drifts.items() if drift is not None}
    if not judged:
        return _skip("drift", limit, f"fewer than {MIN_FOR_DRIFT} samples")
    drifting = {name: drift for name, drift in judged.items() if drift.found}
    sentences = [
        f"drift: {name} changed by {drift.change_pct:+.1f} % over the run "
        f"[{drift.ci_low_pct:+.1f}, {drift.ci_high_pct:+.1f}] (limit {DRIFT_PCT:g} %)"
        for name, drift in drifting.items()
    ]
    value = ", ".join(f"{name} {drift.change_pct:+.1f} %" for name, drift in drifting.items()) or _no_drift(judged)
    return _row("drift", not drifting, limit, value, sentences, otherwise="warn")


def _no_drift(judged: dict[str, Drift]) -> str:
    most, change = max(((name, drift.change_pct) for name, drift in judged.items()), key=lambda pair: abs(pair[1]))
    noise = ", within its noise" if abs(change) > DRIFT_PCT else ""
    return f"none; {most} changes most, by {change:+.1f} %{noise}"


def _isolation(run: MeasuredRun) -> RuleRow:
    found = run.disturbances
    limit, value = "no other work on the machine", f"{len(found)} findings"
    strict = run.manifest.config.get("strict")
    return _row("isolation", not found, limit, value, found, otherwise="fail" if strict else "warn")


def _names(records: Sequence[SampleRecord]) -> str:
    return some([record.sample_id for record in records])
