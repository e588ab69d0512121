"""How this package's docstrings and annotations are read.

Modules import what they only annotate with under ``TYPE_CHECKING``, so that nothing heavy loads early. autodoc then
sees ``Features`` where it knows ``unfuse.Features``: a short name leads to the one documented object that has it. Names
of other packages stay text, for their pages are elsewhere.
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
"""What a name of another package begins with."""


def resolve(app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement) -> Element | None:
    """A link to the only documented object of that last name; the bare text for a name of another package."""
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


def say_no_type(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Keeps napoleon from taking "F frames: read-only" for a type and a text: attributes have annotations."""
    if what in ("attribute", "data", "property"):
        lines[:0] = ["..", ""]  # an empty comment: napoleon looks at the first line only


def leave_out(app: Sphinx, what: str, name: str, obj: Any, options: Any, args: str | None, ret: str | None) -> Any:
    """No signature for a dataclass: its fields are listed below, each with its type, default and text."""
    return ("", None) if what == "class" and is_dataclass(obj) else None


def draw_dashes(app: Sphinx, doctree: Element) -> None:
    """Between a parameter and its text; smart quotes would do it, and to ``--output`` as well."""
    for node in list(doctree.findall(Text)):
        if node == " -- ":
            node.parent.replace(node, Text(" \N{EN DASH} "))


def setup(app: Sphinx) -> dict[str, bool]:
    """Sphinx's entry point."""
    app.connect("missing-reference", resolve)
    app.connect("doctree-read", draw_dashes)
    app.connect("autodoc-process-signature", leave_out)
    app.connect("autodoc-process-docstring", say_no_type, priority=400)  # before napoleon's 500
    return {"parallel_read_safe": True, "parallel_write_safe": True}
