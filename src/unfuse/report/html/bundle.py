"""Vega, Vega-Lite and their embedding as one script: what draws the charts in the reader's browser, offline."""

from __future__ import annotations

import warnings
from functools import cache

_ENTRY = "window.unfuseDraw = (element, spec, options) => vegaEmbed(element, spec, options);"


@cache
def vega_script() -> str:
    """The script; making it takes seconds, so it is made once a process."""
    import vl_convert

    return str(vl_convert.javascript_bundle(_ENTRY, vl_version=_vegalite_version()))


def _vegalite_version() -> str:
    """Of the specifications that the installed Altair writes: ``6.1`` of ``v6.1.0``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from altair import SCHEMA_VERSION

    return ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
