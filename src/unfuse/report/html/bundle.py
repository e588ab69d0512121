"""Vega, Vega-Lite and Vega-Embed as one script that draws the charts offline in the reader's browser."""

from __future__ import annotations

import hashlib
import warnings
from functools import cache
from importlib.metadata import version

from unfuse.user_cache import cached_text

_ENTRY = "window.unfuseDraw = (element, spec, options) => vegaEmbed(element, spec, options);"


@cache
def vega_script() -> str:
    """Return the script. Making it takes seconds, so it is cached, with its digest in the first line."""
    made_of = f"{version('vl-convert-python')}\n{_vegalite_version()}\n{_ENTRY}"
    name = hashlib.sha256(made_of.encode()).hexdigest()[:16]
    return cached_text(f"vega/{name}.js", _make, _intact).partition("\n")[2]


def _make() -> str:
    import vl_convert

    script = str(vl_convert.javascript_bundle(_ENTRY, vl_version=_vegalite_version()))
    return f"// {_digest(script)}\n{script}"


def _intact(cached: str) -> bool:
    first, _, script = cached.partition("\n")
    return first == f"// {_digest(script)}"


def _digest(script: str) -> str:
    return hashlib.sha256(script.encode()).hexdigest()


def _vegalite_version() -> str:
    """Return the version of the specifications that the installed Altair writes, such as ``6.1`` for ``v6.1.0``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from altair import SCHEMA_VERSION

    return ".".join(SCHEMA_VERSION.removeprefix("v").split(".")[:2])
