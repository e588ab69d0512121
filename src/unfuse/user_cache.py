"""The user's cache folder, for results that take long to compute. It holds no KV cache."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from unfuse.atomic_files import complete_file, make_folder


def cache_home() -> Path:
    """Return ``UNFUSE_CACHE``, or the user's cache folder; it need not exist yet."""
    return Path(os.environ.get("UNFUSE_CACHE") or platformdirs.user_cache_dir("unfuse"))


def cached_text(name: str, make: Callable[[], str], is_valid: Callable[[str], bool]) -> str:
    """Return a text from the cache, or make and cache it.

    A cache that cannot be read or written only costs the time again.

    Args:
        name: path below the cache, with ``/``; it names everything that the text depends on.
        make: computes the text.
        is_valid: whether a cached text is complete.
    """
    entry = cache_home() / name
    with contextlib.suppress(OSError, ValueError):
        if is_valid(found := entry.read_bytes().decode()):
            return found
    text = make()
    with contextlib.suppress(OSError):
        make_folder(entry.parent)
        with complete_file(entry) as partial:
            partial.write_bytes(text.encode())
    return text
