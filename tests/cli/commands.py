"""Data sets that the tests of commands write, and the output of the commands."""

from __future__ import annotations

import json
import re

from unfuse.samples.dataset import MANIFEST_NAME

LINE = re.compile(
    r"Sample \d+: S1=\d+\.\d{4}s \| S2=\d+\.\d{4}s \| S3=\d+\.\d{4}s \| S4=\d+\.\d{4}s \| Total=\d+\.\d{4}s \| "
    r"Tokens=\d+ \| prefill=\d+\.\d{4}s \| decode=\d+\.\d{4}s"
)


QUICK = ["--max-new-tokens", "3", "--num-warmups", "1", "--balance-seconds", "0", "--device", "cpu"]


def rows_of(dataset):
    return json.loads((dataset / MANIFEST_NAME).read_text())


def write_rows(dataset, rows):
    (dataset / MANIFEST_NAME).write_text(json.dumps(rows))


def one_line(capsys, words):
    err = capsys.readouterr().err
    assert err.count("\n") == 1, err
    assert err.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err
