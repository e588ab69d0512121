"""Scripts of ``benchmarks/`` that take long on a GPU run through on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_stage4_runs_through(tmp_path):
    command = [sys.executable, "-m", "benchmarks.stage4", "--quick-cpu", "--repeats", "2", "--out", str(tmp_path)]
    root = Path(__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("**Smoke run on CPU, no measurement")
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["failed"] == {}
    assert found["found"]["same tokens"] == 46
