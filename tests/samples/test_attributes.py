"""The scorer: claims read from an answer, in the demo's words and in others."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unfuse.samples.attributes import NAMES, attributes, score_answer
from unfuse.samples.demo.dialogue import Turn, turns
from unfuse.samples.demo.scenes import SceneFacts, demo_scene


def expected(turn: Turn, facts: SceneFacts) -> dict[tuple[str, str], str]:
    """Claims that a turn's answer must make, from the facts alone."""
    movers = {mover.shape: mover for mover in facts.movers}
    count = {("count", ""): str(len(movers))}
    shapes = {("shape", ""): " ".join(sorted(movers))} if movers else {}
    directions = {("direction", shape): mover.direction for shape, mover in movers.items()}
    named = [shape for shape in ("disc", "box", "triangle", "bar", "ring") if f"the {shape}" in turn.question.lower()]
    match turn.kind:
        case "describe":
            flicker = {("flicker", ""): "yes"} if facts.flicker else {}
            fastest = {("fastest", ""): facts.fastest} if facts.fastest else {}
            return count | shapes | directions | {("camera", ""): facts.camera} | flicker | fastest
        case "what":
            return shapes or count
        case "count":
            return count
        case "shape":
            return shapes
        case "directions":
            return directions or count
        case "direction":
            return {("direction", named[0]): movers[named[0]].direction}
        case "place":
            return {("place", named[0]): movers[named[0]].place}
        case "fastest":
            number = count if "moving objects" in turn.answer else {}
            return {("fastest", ""): facts.fastest} | number
        case "camera":
            return {("camera", ""): facts.camera}
        case "flicker":
            return {("flicker", ""): "yes" if facts.flicker else "no"}
        case "not in events":
            return {("shown", ""): "no"}
        case _:
            return {("absent", named[0]): "yes"}


@given(st.integers(0, 2**31))
def test_every_answer_claims_its_facts_and_nothing_else(seed):
    facts = demo_scene(seed)[1]
    for turn in turns(facts):
        found = attributes(turn.answer)
        assert found == expected(turn, facts), turn
        assert {name for name, _ in found} <= set(NAMES)


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("A circle is moving left.", {("shape", ""): "disc", ("direction", "disc"): "left"}),
        ("The square is on the left and goes right", {("place", "box"): "left"}),
        ("THE BALL FALLS; the hoop is rising.", {("direction", "disc"): "down", ("direction", "ring"): "up"}),
        ("The camera pans left.", {("camera", ""): "left"}),
        ("Nothing flickers.", {("flicker", ""): "no"}),
        ("There are 2 objects.", {("count", ""): "2"}),
        ("The ring approaches, away from the rod.", {("direction", "ring"): "closer", ("direction", "bar"): "away"}),
        ("", {}),
        ("It is a sunny day in the city.", {}),
    ],
)
def test_other_words(text, claims):
    assert attributes(text) == claims


def test_judging_goes_by_the_reference():
    reference = "Two objects move in this scene: a disc moves up and a bar moves down. The camera stands still."
    assert all(score_answer(reference, reference).values())
    other = reference.replace("a bar moves down", "a bar moves up")
    assert [key for key, right in score_answer(reference, other).items() if not right] == [("direction", "bar")]
    assert not any(score_answer(reference, "").values())
    assert score_answer("No words of ours.", reference) == {}


@given(st.text(max_size=300))
def test_any_text_is_read(text):
    assert all(isinstance(value, str) for value in attributes(text).values())
