"""One recording in every format."""

from __future__ import annotations

import pytest

from tests.events.formats import write_all
from tests.events.recordings import STREAM


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("formats")
    write_all(path, STREAM)
    return path
