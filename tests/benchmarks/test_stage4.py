"""Scripts of ``benchmarks/`` that take long on a GPU run through on a CPU."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import torch

from tests.engines.graphed.conftest import use_few_programs
from tests.forked import fork_instead
from tests.started import Started


def quicken():
    """For as long as this process lives."""
    if not torch.cuda.is_available():
        use_few_programs(pytest.MonkeyPatch())


def stage4(*arguments):
    from benchmarks.stage4 import measures
    from benchmarks.stage4.__main__ import main

    quicken()
    fork_instead(pytest.MonkeyPatch(), measures, prepare=quicken)
    os.chdir(Path(__file__).parents[2])  # from where it starts others of its kind
    sys.argv = ["stage4", *arguments]
    main()


def test_stage4_runs_through(tmp_path):
    script = Started(stage4, "--quick-cpu", "--repeats", "2", "--out", str(tmp_path), folder=tmp_path)
    assert script.wait() == 0, script.errors[-2000:]
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("**Smoke run on CPU, no measurement")
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["failed"] == {}
    assert found["found"]["same tokens"] == 46
