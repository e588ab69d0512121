"""The system's Chromium, for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, expect, sync_playwright

from tests.started import PATIENCE_S

_FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
PATIENCE_MS = 1000 * PATIENCE_S


def new_context(browser: Browser, **options: Any) -> BrowserContext:
    """Return a context that waits for minutes instead of playwright's 30 s."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    return context


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start Chromium; without it skip the test, or fail in CI."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for name in names if (found := shutil.which(name))), None)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on a machine that tests for all: apt-get install chromium")
        pytest.skip("no Chromium here: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=_FLAGS, timeout=PATIENCE_MS)
        yield started
        started.close()
