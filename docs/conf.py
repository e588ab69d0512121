"""How the site is built: ``sphinx-build -c docs . build/site``, from the root of the repository.

The root is the source, not this folder, so that a link from a page to a record under ``benchmarks/`` is the same
link on GitHub and on the site. Building needs no network, and the built site asks for nothing from elsewhere.
"""

from __future__ import annotations

import sys
from pathlib import Path

import unfuse

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "unfuse"
release = unfuse.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_click",
    "sphinx_copybutton",
    "docstrings",
    "real_run",
    "stage_bars",
]

smartquotes = False  # they would turn --output into a dash
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "benchmarks/README.md",
    "benchmarks/*/report.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "src/unfuse/samples/demo/model/EventGPT-demo/README.md",
]
exclude_patterns = [".*", "build", "docs/_*"]
toc_object_entries_show_parents = "hide"
nitpicky = True  # a name in a docstring that leads nowhere is an error

myst_heading_anchors = 3
suppress_warnings = ["myst.header"]  # reports and cards begin at the level that suits them

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 140
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_line_continuation_character = "\\"

html_theme = "furo"
html_title = "unfuse"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # whoever opens the site's root is sent to docs/
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
_LIGHT = {"color-brand-primary": "#1d5fae", "color-brand-content": "#1d5fae"}
_DARK = {"color-brand-primary": "#7fb4f0", "color-brand-content": "#7fb4f0"}
_STAGES = {
    "load": ("#475569", "#8593a6"),
    "preprocess": ("#4a90d0", "#5b9be0"),
    "encode": ("#0f766e", "#57d2b8"),
    "prefill": ("#c27f0a", "#d9a036"),
    "decode": ("#9f2d13", "#f29b80"),
}
"""Colour of each stage, in the light and in the dark."""
html_theme_options = {
    "light_css_variables": _LIGHT | {f"stage-{stage}": light for stage, (light, _) in _STAGES.items()},
    "dark_css_variables": _DARK | {f"stage-{stage}": dark for stage, (_, dark) in _STAGES.items()},
}
