"""``unfuse bench`` as a user meets it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests import started
from tests.cli.commands import LINE, QUICK, one_line, rows_of, write_rows
from unfuse.__main__ import main as entry_point
from unfuse.cli import run
from unfuse.measure.isolation import IsolationGuard, LinuxHost
from unfuse.testing import FakeGpu
from unfuse.unavailable import Unavailable


def lines_of(folder):
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def test_bench_on_a_dataset(dataset, tmp_path, capsys):
    code = run(["bench", "demo", "--dataset", str(dataset), "--output", "run", *QUICK])
    out = capsys.readouterr().out
    lines = [line for line in out.splitlines() if line.startswith("Sample ")]
    assert len(lines) == 6
    assert all(LINE.fullmatch(line) for line in lines), lines
    verdict = "VALID" if code == 0 else "INVALID"
    assert f"VERDICT: {verdict}" in out
    for word in ("Balance: remainder", "Clock:", "ttft", "Throughput", "LLM (Stage 4) takes", "Warm-up"):
        assert word in out
    assert "\x1b" not in out, "no colours where output is not a terminal"
    folder = tmp_path / "run"
    assert {p.name for p in folder.iterdir()} >= {
        "run.json", "samples.jsonl", "summary.json", "report.md", "report.html", "trace.json", "frames",
    }  # fmt: skip
    measured = [line for line in lines_of(folder) if not line["warmup"]]
    assert [line["sample_id"] for line in measured] == [str(i) for i in range(6)]
    assert [line["media"] for line in measured] == ["event_data", "event_image", "event_image"] * 2
    assert all(line["output_tokens"] == 3 == len(line["token_ids"]) for line in measured)
    assert all(line["e2e_same_tokens"] for line in measured)
    assert all(line["reused_prefix_tokens"] == 0 for line in measured)
    assert all(line["media_tokens"] == 70 and line["num_frames"] == 5 for line in measured)
    warm = [line for line in lines_of(folder) if line["warmup"]]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["num_ok"] == 6
    assert summary["num_warmups"] == len(warm) > 0
    assert summary["stages_host"]["decode"]["count"] == 6
    manifest = json.loads((folder / "run.json").read_text())
    assert len(manifest["model"]["fingerprint"]) == 64
    assert manifest["environment"]["packages"]["torch"]
    assert "Where the time goes" in (folder / "report.md").read_text()


def test_demo_by_default(capsys):
    run(["bench", "--max-samples", "1", *QUICK])
    out = capsys.readouterr().out
    assert "No model given: using the built-in demo model" in out
    assert "trained on simulated scenes" in out
    assert len(list(Path("runs").iterdir())) == 1


def test_strict_and_profile(monkeypatch, capsys):
    """A machine that is not free is refused in one line; a free one is measured, with a profile if requested."""
    gpu, host = FakeGpu(), LinuxHost()
    host.load_average, host.times = lambda: 0.0, lambda: Unavailable("not looked at")
    guard = IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)
    monkeypatch.setattr("unfuse.benchmarking.bench.guard_for", lambda _: guard)
    command = ["bench", "demo", "--max-samples", "1", "--output", "r", "--energy-seconds", "0", *QUICK]
    gpu.slow = ("power brake",)
    assert run([*command, "--strict"]) == 1
    one_line(capsys, ["isolation", "gpu-throttled: clocks held down at this moment by power brake", "--strict"])
    assert not Path("r").exists()
    gpu.slow = ()
    run([*command, "--strict", "--profile"])
    out = capsys.readouterr().out
    assert "Isolation: nothing found; 4 of 5 rules; not looked at: cpu-busy (not looked at)." in out
    assert "Energy: not measured (not requested: --energy-seconds 0)." in out
    assert "Profile: profile.json" in out
    assert "Trace: r/trace.json (open it at ui.perfetto.dev)" in out
    assert (Path("r") / "profile.json").stat().st_size > 10_000
    gpu.busy_pct = 70
    run(["bench", "demo", "--max-samples", "1", "--output", "s", "--energy-seconds", "0", *QUICK])
    out = capsys.readouterr().out
    warning = "\nWarning: not isolated at the start: gpu-busy: 70 % busy"
    assert out.count(warning) == 2, "printed before the run starts, and in the summary"


def test_output_length(capsys):
    run(["bench", "demo", "--max-samples", "2", "--output-length", "5", "--output", "r", *QUICK])
    assert {line["output_tokens"] for line in lines_of(Path("r"))} == {5}


def test_a_failed_sample_is_counted(dataset, capsys):
    rows = rows_of(dataset)
    rows[2]["conversations"][0]["value"] = "why? " * 3000
    write_rows(dataset, rows)
    assert run(["bench", "demo", "--dataset", str(dataset), "--output", "r", *QUICK]) == 1
    out = capsys.readouterr().out
    assert "Sample 2: FAILED | question 'why?" in out
    assert "VERDICT: INVALID" in out
    assert "1 of 6 samples failed: 2" in out
    assert "Samples: 5 ok, 1 failed." in out
    assert [line["status"] for line in lines_of(Path("r")) if not line["warmup"]].count("failed") == 1


def test_an_occupied_folder_is_never_overwritten(dataset, capsys):
    run(["bench", "demo", "--dataset", str(dataset), "--max-samples", "1", "--output", "r", *QUICK])
    before = {p: p.read_bytes() for p in Path("r").rglob("*") if p.is_file()}
    assert run(["bench", "demo", "--dataset", str(dataset), "--output", "r", *QUICK]) == 2
    assert "--resume" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in Path("r").rglob("*") if p.is_file()} == before


def test_resume_refuses_other_conditions(dataset, capsys):
    base = ["bench", "demo", "--dataset", str(dataset), "--max-samples", "2", "--output", "r", *QUICK]
    run([*base, "--max-new-tokens", "3"])
    assert run([*base, "--max-new-tokens", "4", "--resume"]) == 2
    assert "max_new_tokens" in capsys.readouterr().err


def test_killed_and_resumed(dataset, tmp_path):
    command = ["bench", "demo", "--dataset", str(dataset), "--output", "r"]
    command += ["--max-new-tokens", "40", "--balance-seconds", "0", "--device", "cpu"]
    # Held before the fifth sample at the latest, so that it cannot have come to its end.
    process = started.unfuse(*command, folder=tmp_path, hold=("unfuse.benchmarking.pairs:Pairs.measure", 4))
    assert process.wait_until(lambda: process.out.count("Sample ") >= 2), process.errors
    process.kill()
    stored = (tmp_path / "r" / "samples.jsonl").read_bytes()
    done = [line["sample_id"] for line in map(json.loads, stored.decode().splitlines()) if not line["warmup"]]
    assert len(done) >= 2, "what was reported is there"
    assert not (tmp_path / "r" / "summary.json").exists()
    finished = started.unfuse(*command, "--resume", folder=tmp_path)
    assert finished.wait() in (0, 1), finished.errors
    data = (tmp_path / "r" / "samples.jsonl").read_bytes()
    assert data.startswith(stored[: stored.rfind(b"\n") + 1]), "earlier lines stay as they are"
    ids = [line["sample_id"] for line in map(json.loads, data.decode().splitlines()) if not line["warmup"]]
    assert ids == [str(i) for i in range(6)], "every sample exactly once"
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["num_ok"] == 6


def test_interrupted_while_it_loads(monkeypatch, capsys):
    """A second of imports comes before the first command; it ends without a traceback too."""

    class Loading:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "unfuse.cli", Loading())
    with pytest.raises(SystemExit) as ended:
        entry_point()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_several_models(dataset, tmp_path, capsys):
    command = ["bench", "demo", "random:llava-tiny", "--dataset", str(dataset), "--max-samples", "2"]
    code = run([*command, "--output", "both", "--num-warmups", "1", "--balance-seconds", "0", "--output-length", "3"])
    out = capsys.readouterr().out
    assert "Every model writes 3 new tokens per sample." in out
    assert "Differences in work between the models" in out
    assert f"VERDICT: {'VALID' if code == 0 else 'INVALID'}" in out
    assert (tmp_path / "both" / "comparison.json").is_file()
    assert run([*command, "--output", "both"]) == 2
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bench", "demo", "demo"], ["demo twice"]),
        (["bench", "demo", "--protocol", "psychic"], ["psychic", "decoupled, fused, hooked, reencode or all"]),
        (["bench", "demo", "random:llava-9000"], ["llava-9000", "random:llava-tiny"]),
    ],
)
def test_several_models_misnamed(arguments, words, capsys):
    assert run(arguments) == 2
    one_line(capsys, words)
