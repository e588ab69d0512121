"""The cache: what is found there is believed only if it is whole, and a cache that fails costs time only."""

from __future__ import annotations

from pathlib import Path

import pytest

from unfuse.cache import cache_home, remembered


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


def whole(text: str) -> bool:
    return text.startswith("made")


def test_made_once(home: Path) -> None:
    make = Maker()
    assert [remembered("a/b", make, whole) for _ in range(3)] == ["made\r\nof lines, å"] * 3
    assert make.calls == 1
    assert [p.name for p in (home / "a").iterdir()] == ["b"], "nothing half-written stays"
    remembered("a/c", make, whole)
    assert make.calls == 2


@pytest.mark.parametrize("damage", [b"", b"other", b"\xff\xfe"])
def test_damage_is_made_again(home: Path, damage: bytes) -> None:
    make = Maker()
    remembered("a", make, whole)
    (home / "a").write_bytes(damage)
    assert whole(remembered("a", make, whole))
    assert make.calls == 2
    assert remembered("a", make, whole)
    assert make.calls == 2


def test_no_place_for_it(home: Path) -> None:
    home.write_text("a file")
    make = Maker()
    assert whole(remembered("a/b", make, whole))
    assert whole(remembered("a/b", make, whole))
    assert make.calls == 2
    assert home.read_text() == "a file"


def test_the_users_own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UNFUSE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home() == tmp_path / "unfuse"
