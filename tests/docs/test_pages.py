"""What the pages and the README show is so: their commands run, print what is shown, and their Python runs.

Numbers differ from machine to machine, so a shown line stands for any line with other numbers; ``...`` stands for
anything. Lines may be left out between two that are shown.
"""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch

import unfuse.measure.isolation
import unfuse.protocols.probing
import unfuse.verification
from unfuse.cli import run
from unfuse.protocols import BenchSettings
from unfuse.report.statistics import Drift, balance
from unfuse.report.verdict import (
    balance_warnings,
    drift_warnings,
    first_warnings,
    noise_warnings,
    protocol_reasons,
    reasons_against,
)
from unfuse.runs.schema import Ceilings, Probes, SampleRecord, StageTime

ROOT = Path(__file__).parents[2]
HOW_TO = ROOT / "docs" / "how-to"
PAGES = [ROOT / "README.md", ROOT / "docs" / "index.md", *sorted(HOW_TO.glob("*.md"))]
BLOCK = re.compile(r"^( *)```(console|python)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_NUMBER = r"[-+]?\d[\d.,]*"
ANY = re.compile(rf"\.\.\.|(?<=VERDICT: )VALID|{_NUMBER}(?: {_NUMBER})*")
"""What a shown line need not have in common with the printed one; a run of numbers is one."""
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
    """The first shown line that is not printed after the ones before it; None where all are."""
    lines = iter([squeezed(line) for line in printed.splitlines()])
    for line in shown:
        wanted = pattern(line)
        if line.strip() != "..." and not any(wanted.fullmatch(each) for each in lines):
            return line
    return None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder with a recording; what measures for long is left out or shortened, as its own tests have it."""
    from unfuse.samples.demo import demo_sample

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(unfuse.protocols.probing, "measure_ceilings", lambda *_: CEILINGS)
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


def _record(name, **fields):
    stages = {stage: StageTime(host_ms=10.0) for stage in ("load", "preprocess", "encode", "prefill", "decode")}
    return SampleRecord(
        **{"sample_id": name, "status": "ok", "stages": stages, "output_tokens": 4, "num_frames": 5, **fields}
    )


def every_reason():
    ok, few = _record("a"), balance([(1.0, 1.0)])
    gap = balance([(1.0, 1.2)] * 30)
    return [
        *reasons_against([], few, 8),
        *reasons_against([ok, _record("b", status="failed", error="e")], few, 8),
        *reasons_against([_record("c", output_tokens=0), _record("d", e2e_same_tokens=False)], gap, 2),
        *protocol_reasons("reencode", Probes(encoder_calls_after_encode=2), [ok]),
        *protocol_reasons("decoupled", Probes(encoder_calls_after_encode=2), [ok]),
        *protocol_reasons("hooked", Probes(), [ok]),
    ]


def every_warning():
    drift = Drift(change_pct=4.0, ci_low_pct=3.1, ci_high_pct=4.9)
    wide = balance([(1.0, 1.0 + 0.1 * (i % 5)) for i in range(8)])
    return [
        *noise_warnings(18.0, 1),
        *balance_warnings(wide),
        *first_warnings([9.0, 1.0, 1.0, 1.0, 1.0]),
        *drift_warnings("decode", drift),
    ]


@pytest.mark.parametrize(("found", "count"), [(every_reason, 10), (every_warning, 5)])
def test_troubleshooting_knows_every_reason_and_warning(found, count):
    shown = re.findall(r"^\| `([^`]+)` \|", (HOW_TO / "troubleshooting.md").read_text(), re.MULTILINE)
    said = found()
    assert len(said) >= count
    for text in said:
        assert any(re.match(pattern(each), text) for each in shown), f"troubleshooting.md does not explain: {text}"
