"""Resolve this package's docstrings and annotations for autodoc.

Modules import names of annotations under ``TYPE_CHECKING``, so that nothing heavy loads early. autodoc then sees
``Features`` where it knows ``unfuse.Features``, so a short name links to the only documented object of that name. Names
of other packages stay text, because their pages are elsewhere.
"""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Any, Final

from docutils.nodes import Element, Text, TextElement
from sphinx.addnodes import pending_xref
from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

_OTHERS: Final = (
    "collections", "contextlib", "nn", "np", "numpy", "os", "pathlib", "torch", "transformers",
    "CLIPVisionConfig", "NDArray", "Path", "PathLike",
)  # fmt: skip
"""Beginnings of names of other packages."""


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> Element | None:
    """Link to the only documented object of that last name; names of other packages stay text."""
    if node.get("refdomain") != "py":
        return None
    target = str(node["reftarget"])
    first, last = target.partition(".")[0], target.rpartition(".")[2]
    if first in _OTHERS:
        return content
    objects = env.domains.python_domain.objects
    found = {(at.docname, at.node_id) for name, at in objects.items() if name.rpartition(".")[2] == last}
    if len(found) != 1:
        return None
    docname, anchor = found.pop()
    return make_refnode(app.builder, str(node["refdoc"]), docname, anchor, content, target)


def add_no_type(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keep napoleon from parsing "F frames: read-only" as type and text: attributes have annotations."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon looks at the first line only


def leave_out_signature(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> Any:
    """Leave out the signature of a dataclass: its fields are listed below, each with type, default and text."""
    return ("", None) if what == "class" and is_dataclass(obj) else None


def draw_dashes(app: Sphinx, doctree: Element) -> None:
    """Draw a dash between a parameter and its text; smart quotes would also change ``--output``."""
    for node in list(doctree.findall(Text)):
        if node == " -- ":
            node.parent.replace(node, Text(" \N{EN DASH} "))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", draw_dashes)
    app.connect("autodoc-process-signature", leave_out_signature)
    app.connect("autodoc-process-docstring", add_no_type, priority=400)  # before napoleon's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
