"""How many examples hypothesis tries: few and the same each time, or many and new ones on request.

The profile ``unfuse`` (default) draws the same examples in every run, so that a test fails for a change and never by
chance. The profile ``search`` draws 10,000 new ones a test: ``pytest -m hypothesis --hypothesis-profile search``.
"""

from __future__ import annotations

from typing import Any

from hypothesis import settings

SEARCH = 10_000


def register_profiles() -> None:
    """Register both profiles and load the default one; ``--hypothesis-profile`` is applied after it."""
    # No deadline: code that is compiled at its first call takes longer then, and so does a busy machine.
    settings.register_profile("unfuse", deadline=None, derandomize=True, database=None)
    settings.register_profile("search", deadline=None, derandomize=False, max_examples=SEARCH)
    settings.load_profile("unfuse")


def examples(count: int, **others: Any) -> settings:
    """Settings of a test that tries ``count`` examples, or 10,000 in a search."""
    searching = settings.default is not None and settings.default.max_examples >= SEARCH
    return settings(max_examples=SEARCH if searching else count, **others)
