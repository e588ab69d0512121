"""``real-run FOLDER``: the report of a committed run, made from its records while the site is built."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import committed_runs
from docutils.nodes import Node
from sphinx.util.docutils import SphinxDirective

from unfuse.report import report_markdown

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class RealRun(SphinxDirective):
    """Shows the report of the run in a folder, named from the root of the repository."""

    required_arguments = 1

    def run(self) -> list[Node]:
        """The report's sections, below the page's own title."""
        folder = Path(self.env.srcdir) / self.arguments[0]
        for path in committed_runs.files_of(folder):
            self.env.note_dependency(str(path))
        manifest, _, summary = committed_runs.read(folder)
        text = re.sub("^#", "##", report_markdown(manifest, summary), flags=re.MULTILINE)
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.add_directive("real-run", RealRun)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
