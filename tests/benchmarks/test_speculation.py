"""The benchmark of speculation: its lists of answers, and its table, which is recomputed from the record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speculation.__main__ import lines
from benchmarks.speculation.answers import scenarios

RECORD = Path(__file__).parents[2] / "benchmarks" / "h200-speculation"


@pytest.fixture
def answers(tmp_path):
    rows = [{"eventgpt": [5, 6, 2 + index % 3], "video_llava": [7, index]} for index in range(300)]
    rows.append({"eventgpt": [9], "video_llava": [9, 2]})
    for name in ("dsec_1s_1100", "dsec_10_windows_10_questions"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    return tmp_path


def test_lists_of_answers(answers):
    found = scenarios(answers)
    assert [len(each) for each in found.values()] == [200, 300, 3, 200, 300, 40]
    assert list(found)[2] == "EventGPT, its 3 different answers"
    assert found["EventGPT, its 3 different answers"] == [[5, 6, 2], [5, 6, 3], [5, 6, 4]]
    assert found["Video-LLaVA, first 200"][7] == [7, 7]
    assert all(len(answer) == 46 for answer in found["answers that repeat nothing"])
    assert all(len(answer) > 1 for each in found.values() for answer in each), "no pass decodes a single token"


def test_the_published_table_is_that_of_the_record():
    found = json.loads((RECORD / "table.json").read_text())
    assert (RECORD / "table.md").read_text() == "\n".join(lines(found)) + "\n"
    for name, row in found["scenarios"].items():
        passes = sum(row["histogram"])
        accepted = sum(count * number for count, number in enumerate(row["histogram"]))
        assert row["tokens_per_pass"] == pytest.approx(1 + accepted / passes), name
        assert passes + accepted == row["tokens"], name
        assert row["ms_per_token"] == pytest.approx(sum(row["answer_ms"]) / row["tokens"]), name
