"""A comparison names the faster run, the difference and unfair conditions, and nothing that was not measured."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.examples import examples
from unfuse.records import Manifest, Probes, SampleRecord, StageMemory, StageTime
from unfuse.report import Part, compare, comparison_markdown, print_comparison, summarise
from unfuse.report.comparison_tables import OTHER_ENGINE, UNFAIR, remarks, tables
from unfuse.report.statistics import ratio

HOSTILE = "\x1b[31mevil|model\n[bold]"
MakeRun = Callable[..., list[SampleRecord]]
TIMES = st.lists(st.floats(0.1, 1e4), min_size=2, max_size=20)


def fused(
    record: SampleRecord, tower: StageTime | None = None, *, encode: float | None = None, name: str = "a"
) -> SampleRecord:
    stages = {"load": StageTime(host_ms=8.0), "preprocess": StageTime(host_ms=17.0)}
    if encode is not None:
        stages["encode"] = StageTime(host_ms=encode)
    stages["fused_generate"] = StageTime(host_ms=1000.0)
    spans = {} if tower is None else {"fused_generate.tower": tower}
    return replace(record, sample_id=name, stages=stages, spans=spans, e2e_host_ms=1025.0, num_frames=5)


@pytest.fixture
def part(manifest: Manifest, make_run: MakeRun) -> Callable[..., Part]:
    def make(
        model: str, protocol: str = "decoupled", records: list[SampleRecord] | None = None, **changes: object
    ) -> Part:
        chosen = make_run(**changes) if records is None else records
        memory = {"encode": StageMemory(peak_bytes=3 * 2**30, resident_bytes=2**30)}
        calls = 2 if protocol == "reencode" else None
        probes = Probes(memory=memory, memory_source="a meter", encoder_calls_after_encode=calls)
        own = replace(manifest, protocol=protocol, model={**manifest.model, "name": model})
        summary = summarise(own, chosen, probes)
        return Part(model=model, protocol=protocol, manifest=own, records=tuple(chosen), summary=summary)

    return make


def test_ratio_by_hand() -> None:
    a, b = {"x": 2.0, "y": 4.0, "z": 6.0}, {"x": 1.0, "y": 2.0, "z": 3.0}
    found = ratio(a, b)
    assert found is not None
    assert (found.value, found.low, found.high, found.paired) == (2.0, 2.0, 2.0, True)
    unpaired = ratio(a, {"q": 1.0, "r": 1.0})
    assert unpaired is not None
    assert (unpaired.value, unpaired.paired) == (4.0, False)
    assert ratio({}, b) is None
    assert ratio(a, {"x": 0.0}) is None


@examples(30)
@given(TIMES, st.floats(0.1, 10))
def test_a_constant_factor_is_found_exactly(times: list[float], factor: float) -> None:
    b = {str(i): t for i, t in enumerate(times)}
    found = ratio({name: t * factor for name, t in b.items()}, b)
    assert found is not None
    assert found.value == pytest.approx(factor)
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.value * (1 + 1e-9)
    assert found.high >= found.value * (1 - 1e-9)


def test_the_interval_holds_the_ratio_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(100):
        base = rng.lognormal(0, 0.2, 30)
        a = {str(i): t * 1.5 * n for i, (t, n) in enumerate(zip(base, rng.lognormal(0, 0.05, 30), strict=True))}
        b = {str(i): t * n for i, (t, n) in enumerate(zip(base, rng.lognormal(0, 0.05, 30), strict=True))}
        found = ratio(a, b)
        assert found is not None
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 1.5 <= found.high
    assert covered >= 88


def test_ratios_are_against_the_first_model(part: Callable[..., Part]) -> None:
    found = compare([part("small"), part("large", ms=(8.5, 17.0, 57.0, 21.8, 928.2))])
    by_stage = {each.stage: each.ratio.value for each in found.ratios}
    assert by_stage["encode"] == pytest.approx(2.0)
    assert by_stage["load"] == pytest.approx(1.0)
    assert {each.reference for each in found.ratios} == {"small"}
    assert found.valid


def test_differences_of_work_are_named(part: Callable[..., Part]) -> None:
    found = compare([part("a", media_tokens=70, num_frames=5), part("b", media_tokens=576, num_frames=1)])
    assert {d.what: dict(d.values) for d in found.differences} == {
        "frames": {"a": "5", "b": "1"},
        "vision tokens of the prompt": {"a": "70", "b": "576"},
    }
    assert not compare([part("a"), part("b")]).differences
    titles = [table.title for table in tables(found)]
    assert titles[1] == UNFAIR


def test_other_engines_are_what_was_compared(part: Callable[..., Part]) -> None:
    changed = [
        replace(each, manifest=replace(each.manifest, model={**each.manifest.model, "engine": engine}))
        for each, engine in ((part("a"), "graphed"), (part("b"), "eager"))
    ]
    assert tables(compare(changed))[1].title == OTHER_ENGINE


def test_protocols_of_one_model_and_what_each_would_claim(part: Callable[..., Part], make_run: MakeRun) -> None:
    base = make_run(6)
    tower = StageTime(host_ms=1.0, device_ms=40.0)
    hooked = [fused(r, tower, name=f"s{i}") for i, r in enumerate(base)]
    again = [fused(r, encode=28.5, name=f"s{i}") for i, r in enumerate(base)]
    spans = {"encode.tower": StageTime(host_ms=25.0, device_ms=25.0)}
    plain = [replace(r, spans={}) for r in hooked]
    parts = [
        part("m", spans=spans),
        part("m", "hooked", hooked),
        part("m", "fused", plain),
        part("m", "reencode", again),
    ]
    found = compare(parts)
    assert found.valid, "the control is invalid, as it has to be"
    claims = next(t for t in tables(found) if "would have claimed" in t.title)
    assert claims.columns == ("", "decoupled", "hooked", "fused", "reencode (INVALID)")
    rows = {row[0]: row[1:] for row in claims.rows}
    assert rows["S3 vision"] == ("28.50", "40.00", "-", "28.50")
    assert rows["S4 LLM"] == ("950.00", "960.00", "-", "1000.00")
    assert rows["S3 + S4 in one"] == ("-", "-", "1000.00", "-")
    hooks = next(t for t in tables(found) if "what hooks in the fused call saw" in t.title)
    assert hooks.rows == (("tower", "40.000", "25.000", "+60.0 %", "1.000", "-98 %"),)
    assert any("INVALID" in line and "control" in line for line in remarks(found))


def test_a_control_that_passes_is_no_control(part: Callable[..., Part]) -> None:
    sound = part("m")
    disguised = replace(sound, protocol="reencode")
    assert not compare([disguised]).valid


def test_a_part_that_did_not_run_is_shown_and_invalid(part: Callable[..., Part]) -> None:
    found = compare([part("a"), Part(model="b", protocol="decoupled", error="no memory")])
    assert not found.valid
    assert "b (decoupled) did not run: no memory" in remarks(found)
    assert not found.ratios
    assert not compare([]).valid


def test_what_cannot_be_measured_one_way_is_a_finding_not_a_failure(part: Callable[..., Part]) -> None:
    refused = Part(model="a", protocol="decoupled", error="cannot be split", refused=True)
    assert compare([part("a"), refused]).valid
    assert not compare([refused]).valid, "nothing was measured"
    assert not compare([part("a"), replace(refused, refused=False)]).valid


def test_written_and_printed_without_a_strangers_marks(part: Callable[..., Part]) -> None:
    found = compare([part(HOSTILE), part("b", media_tokens=1)])
    text = comparison_markdown(found, ("unfuse", "bench", HOSTILE))
    assert "\x1b" not in text
    assert all(line.count("|") >= 2 for line in text.splitlines() if line.startswith("|"))
    file = io.StringIO()
    print_comparison(Console(file=file, width=100), found)
    assert "\x1b" not in file.getvalue()
    assert "VERDICT: VALID" in file.getvalue()
    json.dumps(found.to_dict(), allow_nan=False)


def test_memory_is_stage_by_stage(part: Callable[..., Part]) -> None:
    memory = next(t for t in tables(compare([part("a"), part("b")])) if t.title.startswith("Memory"))
    assert memory.rows == (("encode", "3.00 / 1.00", "3.00 / 1.00"),)
    assert "a meter" in memory.title
