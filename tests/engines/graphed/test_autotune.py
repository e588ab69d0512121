"""Choosing once, and remembering."""

from __future__ import annotations

import json

import pytest
import torch

from unfuse.engines.graphed import autotune
from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.kernels.gemv import GemvConfig

WAYS = ["library", GemvConfig(1, 2, 3, True), GemvConfig(4, 5, 6, False)]


@pytest.fixture
def timed(monkeypatch):
    """A CUDA device on which the second way is the fastest."""
    seen = []

    def time(self, candidate, run):
        seen.append(candidate)
        return [3.0, 1.0, 2.0][WAYS.index(candidate)]

    monkeypatch.setattr(Autotuner, "_time", time)
    monkeypatch.setattr(autotune.torch.cuda, "get_device_name", lambda device: "a / device")
    return seen


def choose(folder, key="one"):
    return Autotuner(torch.device("cuda"), folder).choose(key, WAYS, lambda way: None)


def test_the_fastest_config_is_chosen_and_stored(timed, tmp_path):
    assert choose(tmp_path) == WAYS[1]
    assert len(timed) == 3
    assert choose(tmp_path) == WAYS[1]
    assert len(timed) == 3
    choose(tmp_path, "another")
    assert len(timed) == 6


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"one": "no such way"}'])
def test_a_damaged_tuning_file_is_timed_again(timed, tmp_path, damage):
    choose(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    assert choose(tmp_path) == WAYS[1]
    assert len(timed) == 6
    assert json.loads(file.read_text()) == {"one": [1, 2, 3, True]}


def test_an_unwritable_tuning_file_costs_time_only(timed, tmp_path):
    (tmp_path / "file").write_text("")
    assert choose(tmp_path / "file") == WAYS[1]


def test_without_a_device_the_first_candidate_is_chosen(tmp_path):
    assert Autotuner(torch.device("cpu"), tmp_path).choose("one", WAYS, lambda way: None) == WAYS[0]
    assert not list(tmp_path.iterdir())
