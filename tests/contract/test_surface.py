"""The public surface does not change: names, arguments, options, exit codes, fields of records."""

from __future__ import annotations

import json

import pytest

from tests.contract.surface import SURFACE_FILE, surface


@pytest.fixture(scope="module")
def recorded():
    return json.loads(SURFACE_FILE.read_text())


@pytest.fixture(scope="module")
def found():
    return json.loads(json.dumps(surface()))


@pytest.mark.parametrize("part", ["python", "commands", "errors", "records"])
def test_the_surface_is_the_recorded_one(recorded, found, part):
    assert found[part].keys() == recorded[part].keys()
    for name, each in recorded[part].items():
        assert found[part][name] == each, name
