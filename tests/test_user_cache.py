"""The cache: incomplete texts are made again, and a cache that fails only costs time."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfuse.user_cache import cache_home, cached_text


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNFUSE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Maker:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        return "made\r\nof lines, å"


def is_valid(text: str) -> bool:
    return text.startswith("made")


def test_made_once(home: Path) -> None:
    make = Maker()
    assert [cached_text("a/b", make, is_valid) for _ in range(3)] == ["made\r\nof lines, å"] * 3
    assert make.calls == 1
    assert [p.name for p in (home / "a").iterdir()] == ["b"], "nothing half-written stays"
    cached_text("a/c", make, is_valid)
    assert make.calls == 2


@pytest.mark.parametrize("damage", [b"", b"other", b"\xff\xfe"])
def test_damage_is_made_again(home: Path, damage: bytes) -> None:
    make = Maker()
    cached_text("a", make, is_valid)
    (home / "a").write_bytes(damage)
    assert is_valid(cached_text("a", make, is_valid))
    assert make.calls == 2
    assert cached_text("a", make, is_valid)
    assert make.calls == 2


def test_a_cache_that_cannot_be_written(home: Path) -> None:
    home.write_text("a file")
    make = Maker()
    assert is_valid(cached_text("a/b", make, is_valid))
    assert is_valid(cached_text("a/b", make, is_valid))
    assert make.calls == 2
    assert home.read_text() == "a file"


def test_the_default_is_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "unfuse"
