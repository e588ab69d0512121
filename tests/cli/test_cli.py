"""All commands: help, bad arguments and bad input, each in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.cli.commands import QUICK, one_line, rows_of, write_rows
from unfuse.cli import cli, run
from unfuse.samples.dataset import MANIFEST_NAME
from unfuse.samples.demo import demo_checkpoint


def test_help_is_not_truncated(capsys):
    assert run(["--help"]) == 0
    listed = capsys.readouterr().out.split("Commands:\n")[1]
    assert len(listed.splitlines()) == len(cli.commands)
    assert "..." not in listed


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
        (["demo", "--resume"], ["resume", "no output"]),
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


def test_no_torch_before_the_input_is_checked():
    """A typing error costs no waiting for torch."""
    code = (
        "import sys; from unfuse.cli import run; assert run(['bench', 'demo', '--dataset', 'nowhere']) == 2;"
        "assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
