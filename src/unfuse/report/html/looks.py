"""How a run is called and drawn, the same in every chart: a name, a colour, and a shape for who sees no colours.

Colours are names of CSS variables: the style sheet gives them one value on paper, one on light and one on dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from unfuse.report.reading import ReportRun
from unfuse.report.text import printable

NUM_COLOURS: Final = 8
"""``--run-0`` and on in the style sheet."""
_SHAPES: Final = {
    "circle": "\u25cf",
    "square": "\u25a0",
    "triangle-up": "\u25b2",
    "diamond": "\u25c6",
    "triangle-down": "\u25bc",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """Of one run."""

    label: str
    colour: str
    shape: str
    """As Vega names it."""
    glyph: str
    """The same shape as a character, for legends."""


def looks_of(runs: Sequence[ReportRun]) -> list[Look]:
    """One a run, in order; labels are unique and safe to show. A model keeps its colour under every protocol."""
    models = list(dict.fromkeys(run.part.model for run in runs))
    protocols = list(dict.fromkeys(run.part.protocol for run in runs))
    shapes = list(_SHAPES.items())
    found: list[Look] = []
    for run in runs:
        model, protocol = models.index(run.part.model), protocols.index(run.part.protocol)
        label = printable(run.part.name if len(protocols) > 1 else run.part.model).strip() or "unnamed"
        while any(look.label == label for look in found):
            label += " again"
        shape, glyph = shapes[(model + protocol) % len(shapes)]
        found.append(Look(label=label, colour=f"var(--run-{model % NUM_COLOURS})", shape=shape, glyph=glyph))
    return found


def stage_colour(stage: str) -> str:
    """Of a stage's bars."""
    return f"var(--stage-{stage.replace('_', '-')})"


def stage_ink(stage: str) -> str:
    """Of text on them."""
    return f"var(--on-{stage.replace('_', '-')})"
