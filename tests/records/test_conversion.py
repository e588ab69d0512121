"""Values of a damaged or hostile file are one line with their path."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from unfuse.errors import RunFolderError
from unfuse.records.conversion import from_plain


@dataclass(frozen=True)
class Part:
    status: Literal["ok", "failed"]


@dataclass(frozen=True)
class Whole:
    parts: dict[str, Part] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize("text", ["other", "ok - at `$.x`", "ok - at `$.parts[...].status`", "`$", " - at `$.status`"])
def test_an_invalid_word_is_named_with_its_path(text):
    with pytest.raises(RunFolderError) as caught:
        from_plain(Whole, {"parts": {"a": {"status": "ok"}, "b": {"status": text}}}, where="run.json")
    assert str(caught.value) == f"run.json: parts: b: status: found {text!r}, expected 'ok' or 'failed'"


def test_half_of_a_surrogate_pair_is_refused():
    with pytest.raises(RunFolderError, match=r"run\.json: found half of a surrogate pair"):
        from_plain(Whole, {"parts": {"a": {"status": "\ud800"}}}, where="run.json")


def test_values_that_are_nested_too_deeply_are_refused():
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(RunFolderError, match=r"run\.json: found values that are nested too deeply"):
        from_plain(Whole, {"facts": {"a": deep}}, where="run.json")
