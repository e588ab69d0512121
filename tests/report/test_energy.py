"""Energy in words: numbers with their resolution, and the reason for each missing number, once."""

from __future__ import annotations

import pytest

from unfuse.records.schema import Energy, Probes, StageEnergy
from unfuse.report.energy import energy_line, energy_rows, energy_summary


def of(**fields: object) -> str:
    return energy_line(energy_summary(Probes(energy=Energy(**fields))))  # type: ignore[arg-type]  # as a test names them


def test_stages_tokens_and_what_is_left_above_idle() -> None:
    stages = {
        "prefill": StageEnergy(joules=11.0, resolution_joules=0.3, calls=100, seconds=1.5),
        "decode": StageEnergy(joules=90.0, resolution_joules=2.0, calls=10, seconds=2.0),
    }
    found = energy_summary(Probes(energy=Energy(stages=stages, output_tokens=46, idle_watts=100.0)))
    rows = {name: numbers for name, *numbers in energy_rows(found)}
    # Idle for 2 s over 10 calls: 20 J of each call's 90.
    assert rows["decode"] == ["90.0", "2.0", "70.0"]
    assert rows["a decoded token"] == ["2.00", "0.05", "1.56"]  # the bound is rounded up
    assert rows["sum of stages"][0] == "101.0"
    assert found.output_token is not None
    assert found.output_token.joules == pytest.approx(101 / 46)
    assert "decode 90.0 ± 2.0" in energy_line(found)


def test_a_reason_is_given_once_for_all_that_share_it() -> None:
    slow, other = "the counter is too slow", "it failed"
    line = of(missing={"load": slow, "encode": slow, "decode": other}, idle_watts=116.0)
    assert line == (
        "Energy of one sample in J, whole board, ± a bound on what the counter's steps hide: none; idle 116 W. "
        "No number for load, encode: the counter is too slow. "
        "No number for decode: it failed."
    )


def test_nothing_measured() -> None:
    assert of(reason="no GPU") == "Energy: not measured (no GPU)."
    assert "not measured by the version" in energy_line(energy_summary(Probes()))
