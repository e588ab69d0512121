"""The examples of the pages and the README hold: commands run and print the shown output, and Python runs.

Numbers differ from machine to machine, so a shown line stands for any line with other numbers; ``...`` stands for
anything. Lines may be left out between two that are shown.
"""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import unfuse.benchmarking.probing
import unfuse.measure.isolation
import unfuse.verification
from unfuse.benchmarking import BenchSettings
from unfuse.cli import run
from unfuse.measure.isolation import CpuTimes, IsolationGuard
from unfuse.measure.nvml import GpuProcess
from unfuse.records.schema import Finding, Isolation, Manifest, Noise, Probes, SampleRecord, StageTime
from unfuse.records.work_records import Ceilings
from unfuse.report.isolation import RULES
from unfuse.report.measured_run import MeasuredRun
from unfuse.report.rules import judge

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted(HOW_TO.glob("*.md"))]
BLOCK = re.compile(r"^( *)```(console|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NUMBER = r"[-+]?\d[\d.,]*"
ANY = re.compile(rf"\.\.\.|(?<=VERDICT: )VALID|{_NUMBER}(?: {_NUMBER})*")
"""Parts of a shown line that may differ in the printed line; a run of numbers is one part."""
STANDS_FOR = {"...": ".*", "VALID": "(IN)?VALID"}
CEILINGS = Ceilings(bytes_per_s=47e9, flops_per_s=0.204e12)
"""Of the machine that the pages show: whether a stage is bound by memory or by arithmetic depends on them."""
NOISY = ("timing_additive", "hooks_agree", "steady")


def blocks(page):
    return [
        (kind, re.sub(f"^{indent}", "", text, flags=re.MULTILINE))
        for indent, kind, text in BLOCK.findall(page.read_text())
    ]


def commands(text):
    """(command, lines shown) of a console block."""
    found = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif line.strip():
            found[-1][1].append(line)
    return found


def pattern(line):
    """Any line that says the same with other numbers."""
    text, parts, end = squeezed(line), [], 0
    for found in ANY.finditer(text):
        parts += [re.escape(text[end : found.start()]), STANDS_FOR.get(found.group(), r"[-+\d., ]+")]
        end = found.end()
    return re.compile("".join(parts) + re.escape(text[end:]))


def squeezed(line):
    return re.sub(r"\s+", " ", line.strip())


def shorter(arguments):
    """Options that make a benchmark quick and change nothing that is shown but numbers."""
    tokens = [] if "--output-length" in arguments else ["--max-new-tokens", "3"]
    return ["--balance-seconds", "0", "--num-warmups", "1", *tokens]


def missing(shown, printed):
    """The first shown line that is not printed after the lines before it; None if all are printed."""
    lines = iter([squeezed(line) for line in printed.splitlines()])
    for line in shown:
        wanted = pattern(line)
        if line.strip() != "..." and not any(wanted.fullmatch(each) for each in lines):
            return line
    return None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a recording only; long measurements, tested elsewhere, are left out or shortened."""
    from unfuse.samples.demo import demo_sample

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unfuse.benchmarking.probing, "measure_ceilings", lambda *_: CEILINGS)
    for limit in ("LOAD_A_CORE", "BUSY_CPU_PCT"):  # the pages show a machine without other work
        monkeypatch.setattr(unfuse.measure.isolation, limit, float("inf"))
    monkeypatch.setitem(BenchSettings.__init__.__kwdefaults__, "noise_repeats", 3)  # the fewest that have a spread
    shutil.copy(demo_sample("demo:3").event_data, "recording.npy")
    Path("questions.txt").write_text("What moves?\nIs it raining?\n")
    for name in NOISY:
        row = unfuse.verification.skipped(name.replace("_", "-"), "left out of this test", expected="")
        monkeypatch.setattr(unfuse.verification, name, lambda *_, row=row: row)
    return tmp_path


@pytest.mark.skipif(torch.cuda.is_available(), reason="the pages show a machine without a GPU")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: page.stem)
def test_what_a_page_shows_is_so(page, folder, capsys):
    namespace = {}
    for kind, text in blocks(page):
        if kind == "python":
            exec(compile(text, str(page), "exec"), namespace)
            continue
        for command, shown in commands(text):
            program, *arguments = shlex.split(command)
            assert program == "unfuse", command
            bench = arguments[0] == "bench"
            code = run([*arguments, *(shorter(arguments) if bench else [])])
            captured = capsys.readouterr()
            refused = any(line.startswith("error: ") for line in shown)
            assert code in ((2,) if refused else (0, 1) if bench else (0,)), (command, captured)
            absent = missing(shown, captured.out + captured.err)
            assert absent is None, f"{command} does not print {absent!r} but:\n{captured.out}{captured.err}"


def test_the_comparison_with_what_is_shown_can_fail():
    printed = "A: up.\n   11 tokens in 0.31 s (eos); 171 of 180 prompt positions reused\nVERDICT: INVALID\n"
    assert missing(["A: up.", "11 tokens in 0.04 s (eos); 171 of 180 ...", "VERDICT: VALID"], printed) is None
    assert missing(["A: down."], printed) == "A: down."
    assert missing(["VERDICT: VALID", "A: up."], printed) == "A: up."
    assert missing(["11 words in 0.04 s (eos); ..."], printed) is not None
    assert missing(["sums 85.9, -81.1 ms; in 95 % of 0.1 .. 2.2"], "sums 5, +1.1 ms; in 99 % of 7.1 .. 3.25") is None


def _record(name, *, load_ms=10.0, decode_ms=10.0, **fields):
    stages = {stage: StageTime(host_ms=10.0) for stage in ("load", "preprocess", "encode", "prefill", "decode")}
    stages |= {"load": StageTime(host_ms=load_ms), "decode": StageTime(host_ms=decode_ms)}
    return SampleRecord(
        **{"sample_id": name, "status": "ok", "stages": stages, "output_tokens": 4, "num_frames": 5, **fields}
    )


def _fused(name):
    stages = {stage: StageTime(host_ms=10.0) for stage in ("load", "preprocess", "encode", "fused_generate")}
    return replace(_record(name), stages=stages)


def judged(records, *, protocol="decoupled", num_samples=2, at_start=(), **probes):
    manifest = Manifest(
        run_id="r", created="2026-01-23T00:00:00+00:00", command=(), protocol=protocol, config={}, model={},
        dataset={"num_samples": num_samples}, environment={"isolation": {"findings": at_start}},
    )  # fmt: skip
    return judge(MeasuredRun(manifest=manifest, records=records, probes=Probes(**probes)))


def every_reason():
    ok = _record("a")
    verdicts = [
        judged([], num_samples=8),
        judged([ok, _record("b", status="failed", error="e")], num_samples=8),
        judged([_record("c", output_tokens=0), _record("d", e2e_same_tokens=False)]),
        judged([_record(f"e{i}", e2e_host_ms=60.0) for i in range(30)]),
        judged([_fused("f")], protocol="reencode", encoder_calls_after_encode=2),
        judged([ok], encoder_calls_after_encode=2),
        judged([_fused("g")], protocol="hooked"),
    ]
    return {reason for verdict in verdicts for reason in verdict.reasons}


class _BusyHost:
    """A ``Host`` with a high load, and with processes that always compute."""

    cores = 4

    def __init__(self):
        self._ticks = 0.0

    def load_average(self):
        return 9.1

    def times(self):
        self._ticks += 1.0
        return CpuTimes(at_s=self._ticks, busy_s=4 * self._ticks, own_s=0.0)

    def own_pids(self):
        return frozenset({1})

    def process_name(self, pid):
        return f"p{pid}"


class _BusyGpu:
    """A ``Gpu`` that another process uses, with a reduced clock."""

    def __init__(self):
        self._throttled_s = 0.0

    def throttle_reasons(self):
        return ("a power cap",)

    def throttled_s(self):
        self._throttled_s += 1.0
        return {"heat": self._throttled_s}

    def processes(self):
        return (GpuProcess(pid=1, used_bytes=None), GpuProcess(pid=2, used_bytes=2**30))

    def utilisation_pct(self):
        return 80


def _disturbed():
    """Return verdicts with every finding of isolation: at the start, between the samples and at the end."""
    clock = itertools.count()
    guard = IsolationGuard(host=_BusyHost(), gpu=_BusyGpu(), sleep=lambda _: None, now=lambda: float(next(clock)))
    start, current = guard.check_at_start(), guard.check()
    assert {each.rule for each in start.findings} == set(RULES)
    texts = tuple(f"{each.rule}: {each.detail}" for each in current.findings)
    for each, text in zip(current.findings, texts, strict=True):
        yield judged([_record("d", disturbances=(text,))], at_start=[asdict(f) for f in start.findings])
        yield judged([_record("d")], isolation=Isolation(findings=(Finding(rule=each.rule, detail=each.detail),)))


def every_warning():
    drifting = [_record(f"a{i}", load_ms=1e5, decode_ms=1000.0 + i) for i in range(100)]
    wide = tuple(50.0 * (1.0 + 0.1 * (i % 5)) for i in range(8))
    repeats = Noise(sample_id="a", total_host_ms=(1.0,) * 8, e2e_host_ms=(1.0,) * 8)
    loud = Noise(sample_id="a", total_host_ms=(49.0, 50.0, 51.0, 50.0, 49.5, 500.0), e2e_host_ms=(50.0,) * 6)
    verdicts = [
        judged(drifting, noise=loud),
        judged([_record(f"b{i}", e2e_host_ms=ms) for i, ms in enumerate(wide)]),
        judged([_record("c0", decode_ms=900.0), *(_record(f"c{i}") for i in range(1, 6))], noise=repeats),
        *_disturbed(),
    ]
    return {warning for verdict in verdicts for warning in verdict.warnings}


@pytest.mark.parametrize(("found", "count"), [(every_reason, 10), (every_warning, 5 + len(RULES))])
def test_troubleshooting_knows_every_reason_and_warning(found, count):
    shown = re.findall(r"^\| `([^`]+)` \|", (HOW_TO / "troubleshooting.md").read_text(), re.MULTILINE)
    texts = found()
    assert len(texts) >= count
    for text in texts:
        assert any(re.match(pattern(each), text) for each in shown), f"troubleshooting.md does not explain: {text}"
