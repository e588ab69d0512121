"""Vega, Vega-Lite and their embedding as one script: what draws the charts in the reader's browser, offline."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from importlib.metadata import version

from unfuse.cache import remembered

_ENTRY = "window.unfuseDraw = (element, spec, options) => vegaEmbed(element, spec, options);"


@cache
def vega_script() -> str:
    """The script; making it takes seconds, so it is kept in the cache, its digest in its first line."""
    made_of = f"{version('vl-convert-python')}\n{_vegalite_version()}\n{_ENTRY}"
    name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return remembered(f"vega/{name}.js", _make, _whole).partition("\n")[2]


def _make() -> str:
    import vl_convert

    script = str(vl_convert.javascript_bundle(_ENTRY, vl_version=_vegalite_version()))
    return f"// {_digest(script)}\n{script}"


def _whole(kept: str) -> bool:
    first, _, script = kept.partition("\n")
    return first == f"// {_digest(script)}"


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()


def _vegalite_version() -> str:
    """Of the specifications that the installed Altair writes: ``6.1`` of ``v6.1.0``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from altair import SCHEMA_VERSION

    return ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
