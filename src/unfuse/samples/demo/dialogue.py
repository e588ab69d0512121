"""Questions about a demo scene and their answers, in the style of the EventGPT instruction set.

Each kind of question has several phrasings and each phrasing one wording of the answer. Answers are whole sentences of
10 to 60 tokens. Some questions ask for facts that events cannot show, and their answer says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from unfuse.samples.demo.scenes import MoverFacts, SceneFacts
from unfuse.samples.simulator import SHAPES
from unfuse.stages import DEFAULT_QUESTION

_NUMBER: Final = ("no", "one", "two", "three")
_DOES: Final = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "closer": "comes closer to the camera",
    "away": "goes away from the camera",
}
_DOING: Final = {
    "left": "moving to the left",
    "right": "moving to the right",
    "up": "moving up",
    "down": "moving down",
    "closer": "coming closer to the camera",
    "away": "going away from the camera",
}
_PLACE: Final = {
    "left": "on the left side of the picture",
    "middle": "in the middle of the picture",
    "right": "on the right side of the picture",
}
_CAMERA: Final = {
    "still": "the camera stands still",
    "left": "the camera turns to the left",
    "right": "the camera turns to the right",
    "forward": "the camera moves forward",
}
_NOTHING: Final = "No object moves in this scene, not a single one."
_UNSEEN: Final = "Events do not show that: they only show where the brightness changes."


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the answer to it."""

    kind: str
    question: str
    answer: str


_DESCRIBE: Final = (
    DEFAULT_QUESTION,
    "Describe this scene.",
    "Describe in detail what happened in the scene.",
    "What do you see?",
    "What is happening in this scene?",
    "What can be seen in these events?",
    "Give a summary of the scene.",
    "What is going on?",
    "What happens here?",
    "Tell me what you see.",
    "Describe the events.",
    "What is in the picture?",
)
_WHAT: Final = (
    "What moves?",
    "What is moving?",
    "What moves in this scene?",
    "Which objects are moving?",
    "Name the moving objects.",
    "What things can you see moving?",
    "Which shapes can you see?",
    "What objects are there?",
    "Does anything move?",
    "Is anything moving?",
)
_COUNT: Final = (
    "How many objects are moving?",
    "How many things move in this scene?",
    "How many moving objects are there?",
    "Count the moving objects.",
    "Is there more than one moving object?",
    "How many?",
    "How many objects do you see?",
    "How many shapes are there?",
)
_SHAPE: Final = (
    "What shape does the moving object have?",
    "What shape is the object?",
    "Which shape has the thing that moves?",
    "What is the shape of the moving object?",
    "What kind of object is it?",
    "What is it?",
)
_DIRECTION: Final = (
    "Which way does the {} move?",
    "Where is the {} going?",
    "In which direction does the {} move?",
    "How does the {} move?",
    "What is the {} doing?",
    "Where to does the {} move?",
    "Which way is the {} moving?",
    "In what direction is the {} going?",
    "Does the {} move?",
    "Is the {} coming closer?",
)
_DIRECTIONS: Final = (
    "Where to?",
    "Which way?",
    "Which way does it move?",
    "Which way do they move?",
    "In which direction do the objects move?",
    "Where is it going?",
    "How do they move?",
    "How does it move?",
)
_WHERE: Final = (
    "Where is the {}?",
    "Where in the picture is the {}?",
    "In which part of the picture is the {}?",
    "Where can the {} be seen?",
    "Is the {} on the left or on the right?",
    "On which side is the {}?",
)
_FASTEST: Final = (
    "Which object is the fastest?",
    "Which one moves fastest?",
    "What moves faster than the rest?",
    "Which object has the highest speed?",
    "Who is the fastest?",
    "Which is the fastest?",
    "Which shape moves fastest?",
)
_EGO: Final = (
    "How does the camera move?",
    "What does the camera do?",
    "What is the camera doing?",
    "Which way does the camera turn?",
    "Which way is the camera turning?",
    "Does the camera turn or stand still?",
    "Is the camera still?",
)
_EGO_OR_NOT: Final = (
    "Is the camera itself moving?",
    "Is the camera moving?",
    "Does the camera move?",
    "Is there any ego motion?",
    "Is the background moving?",
)
"""Questions answered with yes or no."""
_FLICKER: Final = (
    "Does any light flicker?",
    "Is there a flickering lamp?",
    "Do you see a lamp?",
    "Is anything flickering?",
    "Is there a lamp?",
    "Is there any light?",
    "Does anything flicker?",
)
_NOT_IN_EVENTS: Final = (
    "What colour is it?",
    "What color is the {}?",
    "Is it raining?",
    "Who is in the picture?",
    "What time is it?",
    "Are there any vehicles visible in the scene?",
    "Where was this recorded?",
    "What does the sign say?",
    "What colour is the {}?",
    "Is the {} red?",
    "What is the weather like?",
    "Is it day or night?",
    "Are there any people?",
    "How many cars are there?",
    "How old is the man?",
    "Why does the {} move?",
    "What is the name of the city?",
)


def describe(facts: SceneFacts) -> str:
    """Return all facts of a scene as text, the answer to the default question."""
    movers = facts.movers
    if movers:
        noun = "object moves" if len(movers) == 1 else "objects move"
        listed = _listed([f"a {mover.shape} {_DOES[mover.direction]}" for mover in movers])
        sentences = [f"{_NUMBER[len(movers)].capitalize()} {noun} in this scene: {listed}."]
    else:
        sentences = ["No object moves in this scene."]
    if facts.fastest:
        sentences.append(f"The {facts.fastest} is the fastest.")
    sentences.append(f"{_CAMERA[facts.camera].capitalize()}.")
    if facts.flicker:
        sentences.append("A lamp flickers.")
    return " ".join(sentences)


def turns(facts: SceneFacts) -> tuple[Turn, ...]:
    """Return every question about a scene in every phrasing, with its answer."""
    found = [Turn("describe", question, describe(facts)) for question in _DESCRIBE]
    found += [Turn("what", question, _what(facts, i % 2)) for i, question in enumerate(_WHAT)]
    found += [Turn("count", question, _count(facts, i % 2)) for i, question in enumerate(_COUNT)]
    if len(facts.movers) == 1:
        shape = facts.movers[0].shape
        answers = f"The moving object has the shape of a {shape}.", f"The object that moves here is a {shape}."
        found += [Turn("shape", question, answers[i % 2]) for i, question in enumerate(_SHAPE)]
    found += [Turn("directions", question, _directions(facts)) for question in _DIRECTIONS]
    for shape in SHAPES:
        mover = next((mover for mover in facts.movers if mover.shape == shape), None)
        suffix = "" if mover else " of an absent object"
        for i, phrase in enumerate(_DIRECTION):
            found.append(Turn(f"direction{suffix}", phrase.format(shape), _direction(shape, mover, i % 2)))
        for i, phrase in enumerate(_WHERE):
            found.append(Turn(f"place{suffix}", phrase.format(shape), _where(shape, mover, i % 2)))
    if facts.fastest:
        answers = (
            f"The {facts.fastest} is the fastest of the {_NUMBER[len(facts.movers)]} moving objects.",
            f"Of all the objects that move, the {facts.fastest} is the fastest.",
        )
        found += [Turn("fastest", question, answers[i % 2]) for i, question in enumerate(_FASTEST)]
    for wording, questions in enumerate((_EGO, _EGO_OR_NOT)):
        found += [Turn("camera", question, _ego(facts, wording)) for question in questions]
    found += [Turn("flicker", question, _lamp(facts, i % 2)) for i, question in enumerate(_FLICKER)]
    for question in _NOT_IN_EVENTS:
        phrasings = [question.format(shape) for shape in SHAPES] if "{}" in question else [question]
        found += [Turn("not in events", phrasing, _UNSEEN) for phrasing in phrasings]
    return tuple(found)


def one_of_each(facts: SceneFacts, choice: int) -> list[Turn]:
    """Return one question of every kind; ``choice`` selects the phrasing."""
    return [options[choice % len(options)] for options in _by_kind(turns(facts)).values()]


def draw_turns(facts: SceneFacts, rng: np.random.Generator, count: int) -> list[Turn]:
    """Draw questions about a scene, of different kinds as far as possible, each in a drawn phrasing."""
    kinds = _by_kind(turns(facts))
    names = list(kinds)
    weights = np.array([_WEIGHT.get(name, 1.0) for name in names])
    chosen = rng.choice(len(names), count, replace=count > len(names), p=weights / weights.sum())
    return [kinds[names[i]][rng.integers(len(kinds[names[i]]))] for i in chosen]


_WEIGHT: Final = {
    "describe": 3.0,
    "direction": 2.0,
    "camera": 1.5,
    "direction of an absent object": 0.4,
    "place of an absent object": 0.4,
    "not in events": 0.4,
}
"""Weight of each kind in a draw, 1 by default: hard kinds more, easy kinds less."""


def _by_kind(found: Sequence[Turn]) -> dict[str, list[Turn]]:
    kinds: dict[str, list[Turn]] = {}
    for turn in found:
        kinds.setdefault(turn.kind, []).append(turn)
    return kinds


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _what(facts: SceneFacts, wording: int) -> str:
    if not facts.movers:
        return (_NOTHING, "There is no moving object in this scene.")[wording]
    listed = _listed([f"a {mover.shape}" for mover in facts.movers])
    verb = "moves" if len(facts.movers) == 1 else "move"
    be = "is" if len(facts.movers) == 1 else "are"
    return (
        f"{listed.capitalize()} {verb} in this scene, and nothing else does.",
        f"There {be} {listed} that {verb} in this scene.",
    )[wording]


def _count(facts: SceneFacts, wording: int) -> str:
    number = _NUMBER[len(facts.movers)]
    be, noun, verb = ("is", "object", "moves") if len(facts.movers) == 1 else ("are", "objects", "move")
    return (
        f"There {be} {number} moving {noun} in this scene.",
        f"In all, {number} {noun} {verb} through this scene.",
    )[wording]


def _direction(shape: str, mover: MoverFacts | None, wording: int) -> str:
    if mover is None:
        return _absent(shape)
    return (
        f"As the events show, the {shape} {_DOES[mover.direction]}.",
        f"In this scene the {shape} is {_DOING[mover.direction]}.",
    )[wording]


def _directions(facts: SceneFacts) -> str:
    if not facts.movers:
        return _NOTHING
    return f"As the events show, {_listed([f'the {mover.shape} {_DOES[mover.direction]}' for mover in facts.movers])}."


def _where(shape: str, mover: MoverFacts | None, wording: int) -> str:
    if mover is None:
        return _absent(shape)
    return (f"The {shape} is {_PLACE[mover.place]}.", f"The {shape} can be seen {_PLACE[mover.place]}.")[wording]


def _absent(shape: str) -> str:
    return f"There is no {shape} moving in this scene."


def _ego(facts: SceneFacts, wording: int) -> str:
    motion = _CAMERA[facts.camera]
    if facts.camera == "still":
        return (
            f"{motion.capitalize()}: only what moves makes events.",
            f"No, {motion} and the background makes no events.",
        )[wording]
    return (
        f"{motion.capitalize()}: the whole background makes events.",
        f"Yes, {motion} and the background makes events.",
    )[wording]


def _lamp(facts: SceneFacts, wording: int) -> str:
    if facts.flicker:
        return ("Yes, a lamp flickers in this scene.", "There is a lamp that flickers in this scene.")[wording]
    return ("No, there is no lamp that flickers in this scene.", "There is no flickering lamp in this scene.")[wording]
