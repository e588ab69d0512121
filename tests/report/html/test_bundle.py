"""The script that draws: made once, believed from the cache only if it is whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfuse.report.html import bundle
from unfuse.report.html.bundle import vega_script


def test_cached_and_remade_where_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNFUSE_CACHE", str(tmp_path))
    made = vega_script.__wrapped__()
    assert "unfuseDraw" in made
    (cached,) = (tmp_path / "vega").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[:-1])
    assert vega_script.__wrapped__() == made
    assert cached.read_bytes() == whole

    def never() -> str:
        raise AssertionError("it is there")

    monkeypatch.setattr(bundle, "_make", never)
    assert vega_script.__wrapped__() == made
