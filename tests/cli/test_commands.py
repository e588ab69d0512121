"""The commands as a user meets them: what they print, what they refuse, what they leave behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import started
from unfuse.__main__ import main as entry_point
from unfuse.cli import cli, run, seed
from unfuse.cli.bench import run_bench
from unfuse.cli.seed import four_stages, proper_decoupling, three_stages, verify_videollava
from unfuse.events import event_frames, write_eventgpt_npy
from unfuse.measure.isolation import IsolationGuard, LinuxHost
from unfuse.measure.nvml import Unread
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.samples.demo import demo_checkpoint
from unfuse.testing import FakeGpu, synthetic_stream

LINE = re.compile(
    r"Sample \d+: S1=\d+\.\d{4}s \| S2=\d+\.\d{4}s \| S3=\d+\.\d{4}s \| S4=\d+\.\d{4}s \| Total=\d+\.\d{4}s \| "
    r"Tokens=\d+ \| prefill=\d+\.\d{4}s \| decode=\d+\.\d{4}s"
)
QUICK = ["--max-new-tokens", "3", "--num-warmups", "1", "--balance-seconds", "0", "--device", "cpu"]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dataset(tmp_path):
    """Rows with events, with frames, and with both."""
    root = tmp_path / "data"
    (root / "event_npy" / "s").mkdir(parents=True)
    (root / "event_image" / "s").mkdir(parents=True)
    rows = []
    for i in range(6):
        stream = synthetic_stream(seed=i)
        row = {"id": i, "conversations": [{"from": "human", "value": f"<event>\nWhat moves in {i}?"}]}
        if i % 3 != 1:
            write_eventgpt_npy(root / "event_npy" / "s" / f"{i}.npy", stream)
            row["event_data"] = f"s/{i}.npy"
        if i % 3 != 0:
            row["event_image"] = []
            for k, frame in enumerate(event_frames(stream)):
                Image.fromarray(frame).save(root / "event_image" / "s" / f"{i}_{k}.png")
                row["event_image"].append(f"s/{i}_{k}.png")
        rows.append(row)
    (root / MANIFEST_NAME).write_text(json.dumps(rows))
    return root


def rows_of(dataset):
    return json.loads((dataset / MANIFEST_NAME).read_text())


def write_rows(dataset, rows):
    (dataset / MANIFEST_NAME).write_text(json.dumps(rows))


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
    """A machine that is not free is refused in one line; a free one is measured, with a profile where one is wanted."""
    gpu, host = FakeGpu(), LinuxHost()
    host.load_average, host.times = lambda: 0.0, lambda: Unread("not looked at")
    guard = IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)
    monkeypatch.setattr("unfuse.protocols.bench.guard_for", lambda _: guard)
    command = ["bench", "demo", "--max-samples", "1", "--output", "r", "--energy-seconds", "0", *QUICK]
    gpu.slow = ("power brake",)
    assert run([*command, "--strict"]) == 1
    one_line(capsys, ["isolation", "gpu-throttled: clocks held down at this moment by power brake", "--strict"])
    assert not Path("r").exists()
    gpu.slow = ()
    run([*command, "--strict", "--profile"])
    out = capsys.readouterr().out
    assert "Isolation: nothing found; 4 of 5 rules; not looked at: cpu-busy (not looked at)." in out
    assert "Energy: not measured (not asked for: --energy-seconds 0)." in out
    assert "Profile: profile.json" in out
    assert "Trace: r/trace.json (open it at ui.perfetto.dev)" in out
    assert (Path("r") / "profile.json").stat().st_size > 10_000
    gpu.busy_pct = 70
    run(["bench", "demo", "--max-samples", "1", "--output", "s", "--energy-seconds", "0", *QUICK])
    out = capsys.readouterr().out
    assert "\nWarning: not isolated: gpu-busy: 70 % busy" in out, "said before the run begins"
    assert "\nWarning: not isolated at the start: gpu-busy: 70 % busy" in out


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
    process = started.unfuse(*command, folder=tmp_path, hold=("unfuse.protocols.pairs:Pairs.measure", 4))
    assert process.wait_until(lambda: process.out.count("Sample ") >= 2), process.errors
    process.kill()
    kept = (tmp_path / "r" / "samples.jsonl").read_bytes()
    done = [line["sample_id"] for line in map(json.loads, kept.decode().splitlines()) if not line["warmup"]]
    assert len(done) >= 2, "what was reported is there"
    assert not (tmp_path / "r" / "summary.json").exists()
    finished = started.unfuse(*command, "--resume", folder=tmp_path)
    assert finished.wait() in (0, 1), finished.errors
    data = (tmp_path / "r" / "samples.jsonl").read_bytes()
    assert data.startswith(kept[: kept.rfind(b"\n") + 1]), "earlier lines stay as they are"
    ids = [line["sample_id"] for line in map(json.loads, data.decode().splitlines()) if not line["warmup"]]
    assert ids == [str(i) for i in range(6)], "every sample exactly once"
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["num_ok"] == 6


def test_ask(capsys):
    assert run(["ask", "--max-new-tokens", "3", "--device", "cpu", "demo:1", "What moves?", "Where to?"]) == 0
    out = capsys.readouterr().out
    assert out.count("Scene encoded once") == 1
    reused = [int(n) for n in re.findall(r"(\d+) of \d+ prompt positions reused", out)]
    assert reused[0] == 0
    assert reused[1] > 70


def test_verify(tmp_path, capsys):
    assert run(["verify", "--output", "no/rows.json"]) == 2
    code = run(["verify", "--max-new-tokens", "3", "--device", "cpu", "--output", "rows.json"])
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [row["name"] for row in rows][:2] == ["encode-once", "same-output"]
    out = capsys.readouterr().out
    for name in ("encode-once", "same-output", "features-used", "backward-compatible"):
        assert f"PASS {name}" in out
    assert "SKIP golden" in out
    assert code == any(row["status"] == "fail" for row in rows), "whatever the clock has to say here"


def test_verify_golden(golden_dir, recordings_dir, capsys):
    checkpoint = golden_dir / "checkpoints" / "EventGPT-tiny"
    events = recordings_dir / "eventgpt_sample1.npy"
    run(["verify", str(checkpoint), "--golden", str(golden_dir), "--events", str(events), "--device", "cpu"])
    assert "PASS golden" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("film.mp4", ["a picture or a video", "events", "demo sees nothing else", "--model"]),
        ("frames", ["a folder", "events"]),
        ("nowhere.mp4", ["no such file"]),
    ],
)
def test_ask_an_events_model_about_something_else(name, words, tmp_path, capsys):
    (tmp_path / "film.mp4").write_bytes(b"film")
    (tmp_path / "frames").mkdir()
    assert run(["ask", str(tmp_path / name), "What moves?"]) == 2
    one_line(capsys, [name, *words])


def test_help_is_not_cut_off(capsys):
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:\n")[1]
    assert len(listed.splitlines()) == len(cli.commands)
    assert "..." not in listed


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


def test_doctor(capsys):
    assert run(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("torch", "transformers", "CPU", "hdf5plugin", "checkpoints/EventGPT-7b"))


def one_line(capsys, words):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frobnicate"], ["frobnicate"]),
        (["nosuch"], ["nosuch", "no such folder"]),
        (["random:gpt-9"], ["gpt-9", "random:eventgpt-7b"]),
        (["demo", "--device", "gpu"], ["gpu", "cuda:N"]),
        (["demo", "--dtype", "int3"], ["int3", "bfloat16"]),
        (["demo", "--engine", "warp"], ["warp", "eager"]),
        (["demo", "--dataset", "nowhere"], ["nowhere", "no such folder"]),
        (["demo", "--max-samples", "0"], ["max-samples", "at least 1"]),
        (["demo", "--max-new-tokens", "0"], ["max-new-tokens", "at least 1"]),
        (["demo", "--temperature", "-1"], ["temperature"]),
        (["demo", "--energy-seconds", "-1"], ["energy-seconds", "at least 0"]),
        (["demo", "--protocol", "psychic"], ["psychic", "decoupled"]),
        (["demo", "--resume"], ["--output"]),
        (["demo", "--resume", "--output", "none"], ["none", "run"]),
    ],
)
def test_bad_arguments(arguments, words, capsys):
    assert run(["bench", *arguments]) == 2
    one_line(capsys, words)
    assert not list(Path().iterdir()), "nothing half-written"


def truncate(dataset):
    path = dataset / "event_npy" / "s" / "0.npy"
    path.write_bytes(path.read_bytes()[:4000])
    return ["0.npy"]


def hostile(dataset):
    import pickle

    class Runs:
        def __reduce__(self):
            return (os.system, (f"touch {dataset}/ran",))

    path = dataset / "event_npy" / "s" / "0.npy"
    np.save(path, np.array(Runs(), dtype=object), allow_pickle=True)
    assert pickle.HIGHEST_PROTOCOL
    return ["0.npy", "posix.system"]


def save(dataset, **columns):
    base = {"x": np.arange(9), "y": np.arange(9), "t": np.arange(9), "p": np.ones(9, int)}
    np.save(dataset / "event_npy" / "s" / "0.npy", np.array(base | columns, dtype=object), allow_pickle=True)
    return ["0.npy"]


def unequal(dataset):
    return [*save(dataset, x=np.arange(5)), "5", "9"]


def empty(dataset):
    none = np.zeros(0, np.int64)
    return save(dataset, x=none, y=none, t=none, p=none)


def out_of_range(dataset):
    return [*save(dataset, x=np.full(9, 60_000)), "60000"]


def corrupt_png(dataset):
    path = dataset / "event_image" / "s" / "1_0.png"
    data = bytearray(path.read_bytes())
    data[40:80] = bytes(40)
    path.write_bytes(data)
    return ["1_0.png"]


def missing_file(dataset):
    (dataset / "event_npy" / "s" / "0.npy").unlink()
    return ["0.npy", "No such file"]


def malformed_json(dataset):
    path = dataset / MANIFEST_NAME
    path.write_text(path.read_text()[:-20])
    return [MANIFEST_NAME, "malformed JSON"]


def no_media(dataset):
    rows = rows_of(dataset)
    rows[3] = {"id": "bare", "conversations": []}
    write_rows(dataset, rows)
    return ["row 3", "no media"]


@pytest.mark.parametrize(
    "damage",
    [truncate, hostile, unequal, empty, out_of_range, corrupt_png, missing_file, malformed_json, no_media],
)
def test_bad_input(dataset, damage, capsys):
    words = damage(dataset)
    assert run(["bench", "demo", "--dataset", str(dataset), "--output", "r", *QUICK]) == 2
    one_line(capsys, words)
    assert not Path("r").exists(), "nothing half-written"
    assert not (dataset / "ran").exists(), "nothing was run"


def test_checkpoint_with_a_missing_tensor(tmp_path, dataset, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    source = demo_checkpoint()
    shutil.copytree(source.parent, tmp_path / "c")
    weights = tmp_path / "c" / "EventGPT-demo" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["model.norm.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    model = str(weights.parent)
    assert run(["bench", model, "--dataset", str(dataset), "--output", "r", *QUICK]) == 2
    one_line(capsys, ["1 missing (model.norm.weight)"])
    assert not Path("r").exists()


@pytest.fixture
def soon(monkeypatch):
    """The seed's commands repeat a sample until the balance is known; a test has no use for that."""

    def quick(*given, settings, **more):
        return run_bench(*given, settings={**settings, "balance_seconds": 0.2}, **more)

    monkeypatch.setattr(seed, "run_bench", quick)


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
    done = subprocess.run(
        [sys.executable, SEED_SCRIPTS / name, "--dataset_dir", dataset], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "EventGPT-7b" in done.stderr
    assert "Traceback" not in done.stderr


def test_every_entry_point_of_the_seed_is_there():
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


def test_several_models(dataset, tmp_path, capsys):
    command = ["bench", "demo", "random:llava-tiny", "--dataset", str(dataset), "--max-samples", "2"]
    code = run([*command, "--output", "both", "--num-warmups", "1", "--balance-seconds", "0", "--output-length", "3"])
    out = capsys.readouterr().out
    assert "Every model writes 3 new tokens a sample: equal work." in out
    assert "What makes the comparison unfair" in out
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


def test_no_torch_before_the_input_is_checked():
    """A typing error costs no waiting for torch."""
    code = (
        "import sys; from unfuse.cli import run; assert run(['bench', 'demo', '--dataset', 'nowhere']) == 2;"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_options_are_frozen():
    """The command line cannot grow unnoticed."""
    options = {name: sorted(p.name for p in verb.params) for name, verb in cli.commands.items()}
    assert options == {
        "ask": [
            "device", "dtype", "engine", "events", "max_new_tokens", "model", "questions", "seed", "store", "store_gib",
            "temperature",
        ],
        "bench": [
            "balance_seconds", "dataset", "device", "dtype", "energy_seconds", "engine", "max_new_tokens",
            "max_samples", "models", "num_warmups", "output", "output_length", "profile", "protocol", "resume", "reuse",
            "seed", "strict", "temperature",
        ],
        "compare": [
            "baseline", "baseline_dir", "fail_on_regression", "form", "list_baselines", "noise_threshold", "replace",
            "runs", "save_baseline",
        ],
        "dataset": [],
        "doctor": [],
        "export": ["output", "replace", "runs"],
        "report": ["output", "runs"],
        "run": [
            "capacity", "dataset", "device", "devices", "dtype", "encode_batch", "engine", "max_new_tokens",
            "max_samples", "model", "output", "output_length", "questions", "ray", "ray_pools", "resume",
            "scene_seconds", "seed", "store", "store_gib", "temperature", "workers",
        ],
        "serve": [
            "device", "dtype", "engine", "host", "max_concurrent", "max_upload_mb", "model", "no_token", "port",
            "queue", "scenes_mb", "store", "store_gib", "timeout_s", "token_file",
        ],
        "store": [],
        "verify": ["dataset", "device", "dtype", "engine", "events", "golden", "max_new_tokens", "model", "output"],
    }  # fmt: skip
    parts = cli.commands["dataset"].commands
    assert {name: sorted(p.name for p in verb.params) for name, verb in parts.items()} == {
        "build": [
            "events", "frames", "max_windows", "out", "questions", "rectify", "source", "stride", "window",
            "workers",
        ],
        "check": ["folder"],
        "demo": ["count", "out", "seed", "workers"],
        "info": ["folder", "picture"],
    }  # fmt: skip


def test_demo_data_set(tmp_path, capsys):
    """Made, benchmarked on events and judged by its reference answers."""
    out = tmp_path / "set"
    assert run(["dataset", "demo", str(out), "--count", "2", "--workers", "1"]) == 0
    assert run(["dataset", "demo", str(out), "--count", "2"]) == 0, "again"
    folder = tmp_path / "run"
    run(["bench", "--dataset", str(out), "--output", str(folder), "--balance-seconds", "0", "--device", "cpu"])
    printed = capsys.readouterr().out
    assert "2 samples in" in printed
    assert "Answers: 2 of 2, 100.0 %" in printed
    assert "Answers against the reference answers" in (folder / "report.md").read_text()
    quality = json.loads((folder / "summary.json").read_text())["quality"]
    assert quality["exact"]["right"] == quality["answers"] == 2
    assert all(json.loads(line)["reference"] for line in (folder / "samples.jsonl").read_text().splitlines())


def test_a_demo_data_set_without_pyav_is_not_begun(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(["dataset", "demo", str(tmp_path / "set")]) == 2
    one_line(capsys, ["PyAV is not installed", 'pip install "unfuse[video]"'])
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--count", "0"], ["count", "at least 1"]),
        (["--seed", "-1"], ["seed", "at least 0"]),
        (["--workers", "-1"], ["workers", "at least 0"]),
        (["--count", "1"], ["other files", "new folder"]),
    ],
)
def test_a_bad_demo_data_set(tmp_path, capsys, arguments, words):
    (tmp_path / "mine").write_text("")
    assert run(["dataset", "demo", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words)
    assert error.count("\n") == 1
