"""What a run itself has checked, as rows: what was expected, what was seen, and what was not looked at.

The limits are the verdict's own. A check without its measurement is skipped and says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from unfuse.report.claims import hooked_spans
from unfuse.report.statistics import BALANCE_PCT, DRIFT_PCT, NOISE_PCT
from unfuse.report.summary import Summary
from unfuse.runs.schema import Manifest, Probes, SampleRecord

CheckStatus = Literal["pass", "fail", "warn", "skip"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunCheck:
    """One row."""

    name: str
    status: CheckStatus
    expected: str
    observed: str


def run_checks(
    manifest: Manifest, records: Sequence[SampleRecord], probes: Probes, summary: Summary
) -> tuple[RunCheck, ...]:
    """Every check that a run of this protocol holds."""
    ok = [r for r in records if r.status == "ok" and not r.warmup]
    rows = [_samples(manifest, summary), _tokens(ok), _same_tokens(ok), _balance(summary)]
    if summary.protocol in ("decoupled", "reencode"):
        rows.append(_encode_once(probes))
    if summary.protocol == "hooked":
        blind = sum(1 for r in ok if r.num_frames and not hooked_spans(r))
        rows.append(_row("hooks fired", not blind, "on every sample with frames", f"{blind} samples without"))
    return (*rows, _noise(summary), _drift(summary))


def _row(name: str, passed: bool, expected: str, observed: str) -> RunCheck:
    return RunCheck(name=name, status="pass" if passed else "fail", expected=expected, observed=observed)


def _skip(name: str, expected: str, why: str) -> RunCheck:
    return RunCheck(name=name, status="skip", expected=expected, observed=why)


def _samples(manifest: Manifest, summary: Summary) -> RunCheck:
    asked = int(manifest.dataset.get("num_samples", 0))
    passed = summary.num_ok > 0 and not summary.num_failed and summary.num_ok >= asked
    observed = f"{summary.num_ok} measured, {summary.num_failed} failed"
    return _row("samples", passed, f"all {asked} measured" if asked else "all measured", observed)


def _tokens(ok: Sequence[SampleRecord]) -> RunCheck:
    if not ok:
        return _skip("answers", "at least one token a sample", "nothing measured")
    empty = sum(1 for r in ok if not r.output_tokens)
    return _row("answers", not empty, "at least one token a sample", f"{empty} without a token")


def _same_tokens(ok: Sequence[SampleRecord]) -> RunCheck:
    expected = "the unstaged run writes the staged run's tokens"
    known = [r.e2e_same_tokens for r in ok if r.e2e_same_tokens is not None]
    if not known:
        return _skip("same tokens", expected, "not recorded")
    return _row("same tokens", all(known), expected, f"{sum(known)} of {len(known)} samples")


def _balance(summary: Summary) -> RunCheck:
    found = summary.balance
    expected = f"stages add up to end to end within {BALANCE_PCT:g} %"
    if not found.enough:
        return _row("stages add up", False, expected, f"{found.pairs} pairs are too few to say")
    observed = f"remainder {found.remainder_pct:+.2f} % [{found.ci_low_pct:+.2f}, {found.ci_high_pct:+.2f}]"
    return _row("stages add up", found.adds_up, expected, observed)


def _encode_once(probes: Probes) -> RunCheck:
    calls = probes.encoder_calls_after_encode
    expected = "vision modules are not called after Stage 3"
    if calls is None:
        return _skip("encode once", expected, "not recorded")
    return _row("encode once", calls == 0, expected, f"{calls} calls")


def _noise(summary: Summary) -> RunCheck:
    expected = f"repeats of one sample spread by at most {NOISE_PCT:g} %"
    spread = summary.noise_spread_pct
    if spread is None:
        return _skip("noise", expected, "not recorded")
    return RunCheck(
        name="noise", status="pass" if spread <= NOISE_PCT else "warn", expected=expected, observed=f"{spread:.1f} %"
    )


def _drift(summary: Summary) -> RunCheck:
    expected = f"no stage changes by more than {DRIFT_PCT:g} % over the run"
    known = {name: drift for name, drift in summary.drifts.items() if drift is not None}
    if not known:
        return _skip("drift", expected, "fewer than 10 samples")
    found = [f"{name} {drift.change_pct:+.1f} %" for name, drift in known.items() if drift.found]
    largest = max(known, key=lambda name: abs(known[name].change_pct))
    seen = ", ".join(found) or f"none; {largest} changes most, by {known[largest].change_pct:+.1f} %, within its noise"
    if not found and abs(known[largest].change_pct) <= DRIFT_PCT:
        seen = f"none; {largest} changes most, by {known[largest].change_pct:+.1f} %"
    return RunCheck(name="drift", status="warn" if found else "pass", expected=expected, observed=seen)
