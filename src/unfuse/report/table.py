"""A table of text, formed once and rendered for the terminal, Markdown and HTML."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Self

Kind = Literal["run", "checks", "runs", "unfair", "stages", "ratios", "claims", "hooks", "answers", "memory"]
Alignment = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A heading, columns and rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    kind: Kind = "run"
    """Subject of the table: one run, the checks of a run, or an aspect of a comparison."""
    align: str = ""
    """``l`` or ``r`` for each column. By default the first column is text, and the others are numbers."""
    emphasised: tuple[str, ...] = ()
    """Texts of highlighted cells."""
    notes: tuple[str, ...] = ()
    """Lines under the table."""

    @property
    def alignments(self) -> tuple[Alignment, ...]:
        """Alignment of each column."""
        letters = self.align or "l" + "r" * (len(self.columns) - 1)
        return tuple("left" if letter == "l" else "right" for letter in letters)

    def only(self, *columns: str) -> Self:
        """Return the table with some of its columns."""
        indices = [self.columns.index(name) for name in columns]
        return replace(
            self,
            columns=columns,
            rows=tuple(tuple(row[i] for i in indices) for row in self.rows),
            align="".join(self.alignments[i][0] for i in indices),
        )


def text_columns(count: int) -> str:
    """Return the alignment of columns that all hold text."""
    return "l" * count
