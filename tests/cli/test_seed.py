"""The commands of the benchmark that the project grew from."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.cli.commands import LINE, one_line
from unfuse.cli import seed
from unfuse.cli.bench import show_bench
from unfuse.cli.seed import four_stages, proper_decoupling, three_stages, verify_videollava
from unfuse.samples.demo import demo_checkpoint


@pytest.fixture
def soon(monkeypatch):
    """The seed's commands repeat a sample until the balance is known; a test has no use for that."""

    def quick(*given, settings, **more):
        return show_bench(*given, settings={**settings, "balance_seconds": 0.2}, **more)

    monkeypatch.setattr(seed, "show_bench", quick)


@pytest.mark.usefixtures("soon")
def test_seed_command(dataset, capsys):
    arguments = ["--dataset_dir", str(dataset), "--eventgpt_model_path", str(demo_checkpoint()), "--device", "cpu"]
    code = four_stages([*arguments, "--max_samples", "1", "--eventgpt_only", "--show_samples"])
    out = capsys.readouterr().out
    assert code in (0, 1)
    assert sum(LINE.fullmatch(line) is not None for line in out.splitlines()) == 1
    assert "  A: " in out
    assert "Video-LLaVA" not in out


def test_seed_command_never_falls_back_to_the_demo(dataset, capsys):
    assert four_stages(["--dataset_dir", str(dataset)]) == 2
    one_line(capsys, ["checkpoints/EventGPT-7b"])
    assert four_stages(["--dataset_dir", str(dataset), "--eventgpt_model_path", "demo"]) == 2


SEED_SCRIPTS = Path(__file__).parents[2] / "feasible" / "benchmark_inference"


@pytest.mark.parametrize("name", sorted(path.name for path in SEED_SCRIPTS.glob("benchmark_*.py")))
def test_seed_scripts_run_as_written(dataset, name):
    done = forked.run([sys.executable, SEED_SCRIPTS / name, "--dataset_dir", dataset])
    assert done.returncode == 2
    assert "EventGPT-7b" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_entry_point_of_the_seed_exists():
    assert sorted(path.name for path in SEED_SCRIPTS.glob("*.py")) == [
        "benchmark_inference_3stages.py", "benchmark_inference_4stages.py", "benchmark_with_proper_decoupling.py",
        "verify_videollava_decoupling.py",
    ]  # fmt: skip


@pytest.mark.usefixtures("soon")
def test_seed_three_stages(dataset, capsys):
    arguments = ["--dataset_dir", str(dataset), "--eventgpt_model_path", str(demo_checkpoint()), "--device", "cpu"]
    assert three_stages([*arguments, "--max_samples", "1"]) in (0, 1)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Sample ")]
    assert re.fullmatch(r"Sample 0: S1=\S+s \| S2=\S+s \| S3=\S+s \| Total=\S+s \| Tokens=\d+", line)


@pytest.mark.usefixtures("soon")
def test_seed_proper_decoupling(dataset, capsys):
    """Every model that is found, under every protocol; one line for each that is not."""
    arguments = ["--dataset_dir", str(dataset), "--eventgpt_model_path", str(demo_checkpoint()), "--device", "cpu"]
    assert proper_decoupling([*arguments, "--max_samples", "1", "--output_length", "3"]) in (0, 1)
    out = capsys.readouterr().out
    for title in ("Video-LLaVA", "LLaVA-1.5"):
        assert sum(line.startswith(f"{title} is not measured: no checkpoint at") for line in out.splitlines()) == 1
    for word in ("what each protocol would have claimed", "reencode (INVALID)", "hooked", "fused"):
        assert word in out


def test_seed_verification_of_video_llava(dataset, capsys):
    arguments = ["--model_name", "random:video-llava-tiny", "--device", "cpu", "--dataset_dir", str(dataset)]
    assert verify_videollava(arguments) in (0, 1)
    out = capsys.readouterr().out
    for check in (
        "encode-once",
        "same-output",
        "features-used",
        "store-hit",
        "hooks-agree",
        "steady",
        "timing-additive",
    ):
        assert check in out
    assert "FAIL encode-once" not in out
    assert "FAIL same-output" not in out
    assert verify_videollava(["--model_name", "no such thing"]) == 2
