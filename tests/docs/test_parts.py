"""The worked examples of "Contribute a model, a reader, an engine, a check" run as they stand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import unfuse.verification
from unfuse.adapters import hf_loading

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "contributing-parts.md"
PATHS = [ROOT / "docs" / name for name in ("design.md", "graphed.md", "contributing-parts.md", "adding-a-model.md")]
CLOCKS = ("timing_additive", "hooks_agree", "steady")
"""Checks that read a clock: they take long, and have tests of their own."""


def test_examples_run(tmp_path, monkeypatch):
    from unfuse.samples.demo import demo_sample

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hf_loading, "_ADAPTERS", dict(hf_loading._ADAPTERS))
    for name in CLOCKS:
        row = unfuse.verification.skipped(name.replace("_", "-"), "left out of this test", expected="")
        monkeypatch.setattr(unfuse.verification, name, lambda *_, row=row: row)
    shutil.copy(demo_sample("demo:3").event_data, "recording.npy")
    namespace = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 8
    for text in blocks:
        exec(compile(text, str(PAGE), "exec"), namespace)


@pytest.mark.parametrize("page", PATHS, ids=lambda page: page.stem)
def test_modules_that_a_page_names_exist(page):
    """A path in code style is a file of the package, of the tests or of the repository."""
    named = set(re.findall(r"`([\w/.-]+\.(?:py|cu|jsonl?))`", page.read_text()))
    files = [*(ROOT / "src" / "unfuse").rglob("*"), *(ROOT / "tests").rglob("*")]
    existing = {path.relative_to(ROOT).as_posix() for path in files}
    written = {"run.json", "samples.jsonl", "answers.jsonl", "probes.json", "summary.json", "trace.json"}
    missing = {name for name in named - written if not any(f"/{path}".endswith(f"/{name}") for path in existing)}
    assert not missing
