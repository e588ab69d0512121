"""Stop texts, also across tokens."""

from __future__ import annotations

from unfuse.serving.stop import StopTexts


def test_stop_texts() -> None:
    stops = StopTexts(["END", "\n\n"])
    assert [stops.feed(text) for text in ("A b", "ox E", "N", "ough", "\n", "x", " EN", "D after")] == [
        "A b", "ox ", "", "ENough", "", "\nx", " ", "",
    ]  # fmt: skip
    assert stops.hit
    assert stops.feed("more") == stops.end() == ""
    partial = StopTexts(["END"])
    assert partial.feed("EN") == ""
    assert partial.end() == "EN"
    assert StopTexts([]).feed("END") == "END"
    both = StopTexts(["bc", "b"])
    assert both.feed("abc") == "a", "the earliest, whichever it is"
