"""``unfuse verify`` as a user meets it."""

from __future__ import annotations

import json

from unfuse.cli import run


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
