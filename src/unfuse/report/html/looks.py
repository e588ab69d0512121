"""Label, colour and shape of each run, equal in every chart; the shape is for readers without colour vision.

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
    """Label, colour and shape of one run."""

    label: str
    colour: str
    shape: str
    """Name of the shape in Vega."""
    glyph: str
    """Character of that shape, for legends."""


def looks_of(runs: Sequence[ReportRun]) -> list[Look]:
    """Return the look of each run; labels are unique and printable, and a model has one colour under every protocol."""
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
    """Return the colour of a stage's bars."""
    return f"var(--stage-{stage.replace('_', '-')})"


def stage_ink(stage: str) -> str:
    """Return the colour of text on a stage's bars."""
    return f"var(--on-{stage.replace('_', '-')})"
