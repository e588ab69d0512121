"""Charts of a whole page are valid under Vega-Lite's schema."""

from __future__ import annotations

import json
import re

import altair as alt
import pytest
from jsonschema import ValidationError

from tests.report.html.conftest import make_run
from unfuse.report.html.page import report_html


@pytest.fixture(scope="module")
def specs():
    page = report_html([make_run(model, 20) for model in (0, 2)])
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_every_chart_is_one_of_vega_lite(specs):
    kinds = {key.partition("-")[0] for key in specs}
    assert kinds >= {"time", "spread", "drift", "tokens", "roofline", "memory"}
    for spec in specs.values():
        alt.Chart.from_dict(spec)


def test_a_misspelt_chart_is_found(specs):
    wrong = json.loads(json.dumps(next(iter(specs.values()))))
    wrong["layer"][0]["mark"]["yOffsett"] = 3
    with pytest.raises((ValidationError, alt.utils.schemapi.SchemaValidationError)):
        alt.Chart.from_dict(wrong)
