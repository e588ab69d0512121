"""The changelog has the form of Keep a Changelog, and its newest release is the version of the package."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import unfuse

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "CHANGELOG.md").read_text()


def test_the_newest_release_is_the_version_of_package_and_wheel():
    newest = re.search(r"^## (\d+\.\d+\.\d+) - \d{4}-\d\d-\d\d$", TEXT, re.MULTILINE)
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert newest[1] == unfuse.__version__ == wheel


def test_every_heading_is_a_release_or_a_kind_of_change():
    headings = re.findall(r"^##+ .*$", TEXT, re.MULTILINE)
    release = r"## (Unreleased|\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d)"
    kind = "### (Added|Changed|Deprecated|Removed|Fixed|Security)"
    assert [each for each in headings if not re.fullmatch(f"{release}|{kind}", each)] == []
