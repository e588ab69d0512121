"""Where things are kept that can be made again."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

import platformdirs


def cache_home() -> Path:
    """``UNFUSE_CACHE``, or the user's own cache folder; it need not exist yet."""
    return Path(os.environ.get("UNFUSE_CACHE") or platformdirs.user_cache_dir("unfuse"))


def remembered(name: str, make: Callable[[], str], sound: Callable[[str], bool]) -> str:
    """A text that takes long to make, from the cache if it is there.

    A cache that cannot be read or written costs the time again, nothing else.

    Args:
        name: its place in the cache, with ``/``; everything that the text depends on is in it.
        make: makes it.
        sound: whether a text that was found there is a whole one.
    """
    entry = cache_home() / name
    with contextlib.suppress(OSError, ValueError):
        if sound(found := entry.read_bytes().decode()):
            return found
    text = make()
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
        try:
            partial.write_bytes(text.encode())
            partial.replace(entry)
        finally:
            partial.unlink(missing_ok=True)
    return text
