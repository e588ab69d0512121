"""Score answers against reference answers by the attributes of a scene that their words claim.

An attribute is a name, a subject and a value: ``("direction", "disc") -> "left"``. The scorer matches words, not
meanings: a claim in unlisted words is not found; this counts against the answer, never for it.

| name | subject | values |
|---|---|---|
| count | | number of moving objects |
| shape | | the shapes that are introduced ("a disc and a ring") |
| direction | a shape | left, right, up, down, closer, away |
| place | a shape | left, middle, right |
| fastest | | a shape |
| camera | | still, left, right, forward |
| flicker | | yes, no |
| absent | a shape | yes |
| shown | | no: the answer says that events do not show it |
"""

from __future__ import annotations

import re
from typing import Final

Attributes = dict[tuple[str, str], str]

NAMES: Final = ("count", "shape", "direction", "place", "fastest", "camera", "flicker", "absent", "shown")

_SHAPES: Final = {
    "disc": "disc|disk|circle|ball",
    "box": "box|square|rectangle",
    "triangle": "triangle",
    "bar": "bar|stick|pole|rod",
    "ring": "ring|hoop",
}
_SHAPE: Final = re.compile(
    r"\b(?:" + "|".join(f"(?P<{name}>{words})" for name, words in _SHAPES.items()) + r")(?:e?s)?\b"
)
_NEW: Final = re.compile(r"\ban? (?:\w+ )?$")
_NUMBERS: Final = {"no": 0, "one": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6}
_COUNT: Final = re.compile(rf"\b({'|'.join(_NUMBERS)}|\d{{1,3}})(?: moving)? (?:object|thing|shape)s?\b")
_SENTENCE: Final = re.compile(r"[.!?;:\n]+")
_CLAUSE: Final = re.compile(r",| and | while | but ")
_DIRECTIONS: Final = {
    "left": re.compile(r"\b(?:(?:to|towards?) the|mov(?:es|ing)|go(?:es|ing)) left\b(?! side| of)|\bleftwards?\b"),
    "right": re.compile(r"\b(?:(?:to|towards?) the|mov(?:es|ing)|go(?:es|ing)) right\b(?! side| of)|\brightwards?\b"),
    "up": re.compile(r"\b(?:up|upwards?|rises|rising)\b"),
    "down": re.compile(r"\b(?:down|downwards?|falls|falling)\b"),
    "closer": re.compile(r"\b(?:closer|nearer|approach(?:es|ing)|towards? the camera)\b"),
    "away": re.compile(r"\b(?:away|reced(?:es|ing))\b"),
}
_PLACES: Final = {
    "left": re.compile(r"\b(?:on|at) the left\b"),
    "middle": re.compile(r"\b(?:in|at) the (?:middle|cent(?:er|re))\b"),
    "right": re.compile(r"\b(?:on|at) the right\b"),
}
_CAMERAS: Final = {
    "still": re.compile(
        r"\bcamera (?:itself )?(?:stands|is|stays|keeps|remains) (?:still|static)\b|\bcamera does not move\b"
    ),
    "left": re.compile(r"\bcamera (?:itself )?(?:turns|pans|moves|rotates) (?:to the )?left\b"),
    "right": re.compile(r"\bcamera (?:itself )?(?:turns|pans|moves|rotates) (?:to the )?right\b"),
    "forward": re.compile(r"\bcamera (?:itself )?(?:moves|drives|goes|travels) forward\b"),
}
_LAMP: Final = re.compile(r"\b(?:lamp|light)s?\b.*\bflicker|\bflicker\w* (?:lamp|light)s?\b|\bnothing flickers\b")
_NO: Final = re.compile(r"\b(?:no|not|nothing)\b")
_ABSENT: Final = re.compile(r"\bno $")
_NOT_SHOWN: Final = re.compile(r"\bevents do not show\b|\bcannot be (?:seen|told) from (?:the )?events\b")


def attributes(text: str) -> Attributes:
    """Every attribute that a text claims; of contradicting claims the last."""
    found: Attributes = {}
    shapes: set[str] = set()
    for sentence in _SENTENCE.split(text.lower()):
        _scene_attributes(sentence, found)
        for clause in _CLAUSE.split(sentence):
            named = [(match.lastgroup or "", clause[: match.start()]) for match in _SHAPE.finditer(clause)]
            shapes |= {shape for shape, before in named if _NEW.search(before)}
            found |= {("absent", shape): "yes" for shape, before in named if _ABSENT.search(before)}
            if len(named) == 1:
                _shape_attributes(named[0][0], clause, found)
    if shapes:
        found["shape", ""] = " ".join(sorted(shapes))
    return found


def score_answer(reference: str, answer: str) -> dict[tuple[str, str], bool]:
    """Return for each attribute of the reference whether the answer claims an equal value."""
    claimed = attributes(answer)
    return {key: claimed.get(key) == value for key, value in attributes(reference).items()}


def _scene_attributes(sentence: str, found: Attributes) -> None:
    if number := _COUNT.search(sentence):
        word = number.group(1)
        found["count", ""] = str(_NUMBERS.get(word, word))
    for camera, pattern in _CAMERAS.items():
        if pattern.search(sentence):
            found["camera", ""] = camera
    if _LAMP.search(sentence):
        found["flicker", ""] = "no" if _NO.search(sentence) else "yes"
    if _NOT_SHOWN.search(sentence):
        found["shown", ""] = "no"


def _shape_attributes(shape: str, clause: str, found: Attributes) -> None:
    for name, patterns in (("direction", _DIRECTIONS), ("place", _PLACES)):
        for value, pattern in patterns.items():
            if pattern.search(clause):
                found[name, shape] = value
    if re.search(r"\bfastest\b", clause):
        found["fastest", ""] = shape
