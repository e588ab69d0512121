"""``real-run FOLDER``: a committed run's report, written beside the page from its records while the site is built."""

from __future__ import annotations

from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import committed_runs
from docutils import nodes
from sphinx.util.docutils import SphinxDirective

from unfuse.report.html import report_html
from unfuse.report.reading import read_runs

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class RealRun(SphinxDirective):
    """Shows the report of the run in a folder, named from the root of the repository, and a link to it alone."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Return a frame of the page that holds the report."""
        folder = Path(self.env.srcdir) / self.arguments[0]
        for path in committed_runs.files_of(folder):
            self.env.note_dependency(str(path))
        page = Path(self.env.app.outdir) / f"{self.env.docname}-report.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(report_html(read_runs([folder]), command=()), encoding="utf-8")
        title = f"Report of {folder.name}"
        frame = f'<iframe class="report" src="{page.name}" title="{escape(title)}" loading="lazy"></iframe>'
        link = f'<p><a href="{page.name}">The report by itself</a></p>'
        return [nodes.raw("", link + frame, format="html")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.add_directive("real-run", RealRun)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
