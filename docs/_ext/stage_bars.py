"""``stage-bars FOLDER``: time per stage, one bar per model, drawn from a committed comparison's records.

Bars are elements of the page, not an image: they fit a phone's width and the dark theme, and a screen reader reads
their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import committed_runs
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from unfuse.records import STAGES, SampleRecord, read_comparison

if TYPE_CHECKING:
    from sphinx.application import Sphinx

_PROTOCOL: Final = "decoupled"
_MEDIA: Final = {"event_data": "events", "event_image": "event frames", "video": "video", "image": "picture"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bar:
    """One model's run."""

    model: str
    inputs: str
    """Input and output in words."""
    stage_ms: dict[str, float]
    """Median host time of each stage, one segment each."""
    total_ms: float
    """Median of the stage sums of the samples."""
    llm_pct: float
    """Share of Stage 4, prefill and decode."""


def bars_of(comparison: Path) -> list[Bar]:
    """Return a bar for each model that the comparison measured stage by stage."""
    parts = [part for part in read_comparison(comparison).parts if part.protocol == _PROTOCOL]
    return [_bar(comparison / part.folder) for part in parts if part.status == "ended"]


def _bar(folder: Path) -> Bar:
    manifest, all_records, summary = committed_runs.read(folder)
    assert summary.total is not None, f"{folder} measured nothing"
    measured = [record for record in all_records if record.status == "ok" and not record.warmup]
    return Bar(
        model=str(manifest.model["name"]),
        inputs=_inputs(measured[0]),
        stage_ms={stage: found.p50 for stage in STAGES if (found := summary.stages_host[stage]) is not None},
        total_ms=summary.total.p50,
        llm_pct=summary.shares_pct["prefill"] + summary.shares_pct["decode"],
    )


def _inputs(record: SampleRecord) -> str:
    frames = "1 frame" if record.num_frames == 1 else f"{record.num_frames} frames"
    return f"{frames} of {_MEDIA[record.media or '']}, {record.output_tokens} tokens out"


def html_of(bars: Sequence[Bar]) -> str:
    """Return the figure without its caption."""
    longest = max(sum(bar.stage_ms.values()) for bar in bars)
    key = "".join(f'<li><i class="{stage}"></i>{stage}</li>' for stage in STAGES)
    rows = "".join(_row(bar, longest) for bar in bars)
    return f'<ul class="stage-key" aria-hidden="true">{key}</ul><div class="stage-bars">{rows}</div>'


def _row(bar: Bar, longest: float) -> str:
    label = ", ".join(f"{stage} {ms:.1f} ms" for stage, ms in bar.stage_ms.items())
    segments = "".join(
        f'<i class="{stage}" style="width:{100 * ms / longest:.3f}%" title="{stage} {ms:.1f} ms"></i>'
        for stage, ms in bar.stage_ms.items()
    )
    return (
        f"<p><b>{escape(bar.model)}</b> <span>{escape(bar.inputs)}</span> "
        f"<span>{bar.total_ms:.0f} ms, LLM {bar.llm_pct:.0f} %</span></p>"
        f'<div role="img" aria-label="{escape(bar.model)}: {label}">{segments}</div>'
    )


class StageBars(SphinxDirective):
    """The bars of the comparison in a folder, named from the root of the repository; the content is the caption."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Return a figure."""
        folder = Path(self.env.srcdir) / self.arguments[0]
        for path in committed_runs.files_of(folder):
            self.env.note_dependency(str(path))
        figure = nodes.figure(classes=["where-the-time-goes"])
        figure += nodes.raw("", html_of(bars_of(folder)), format="html")
        caption = nodes.caption()
        caption += self.parse_inline(" ".join(self.content), lineno=self.lineno)[0]
        figure += caption
        return [figure]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.add_directive("stage-bars", StageBars)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
