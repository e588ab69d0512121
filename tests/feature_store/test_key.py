"""Every input that changes features changes their key."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import unfuse
from unfuse.feature_store import key
from unfuse.feature_store.key import entry_key, has_hashes, software

PARTS = st.tuples(st.text(), st.text(), st.text(), st.text())


@given(PARTS, PARTS)
def test_equal_only_where_all_parts_are(one, other):
    assert (entry_key(*one) == entry_key(*other)) == (one == other)


@given(st.text(), st.text(), st.text(), st.text())
def test_parts_do_not_run_into_one_another(a, b, c, d):
    assert entry_key(a + b, c, d, "") == entry_key(a, b + c, d, "") if not b else True
    assert not b or entry_key(a + b, c, d, "") != entry_key(a, b + c, d, "")


@given(PARTS)
def test_any_name_becomes_a_plain_one(parts):
    assert re.fullmatch("[0-9a-f]{64}", entry_key(*parts))


@pytest.mark.parametrize("hostile", ["../" * 21 + "x", "A" * 64, "", "a" * 63, "a" * 64 + "\n", "/" * 64])
def test_what_is_no_hash_has_no_key(hostile):
    assert has_hashes("a" * 64, "0" * 64)
    assert not has_hashes(hostile, "0" * 64)
    assert not has_hashes("a" * 64, hostile)


def test_software_is_what_is_installed():
    import torch
    import transformers

    for name, version in (("torch", torch.__version__), ("transformers", transformers.__version__)):
        assert f"{name} {version}" in software()
    assert re.match("unfuse [0-9a-f]{16}, ", software())


def test_any_changed_line_of_the_package_is_other_software(tmp_path, monkeypatch):
    """A mended pooling gives other features of the same file: those of the old one are not to be found."""
    package = shutil.copytree(
        Path(unfuse.__file__).parent, tmp_path / "unfuse", ignore=shutil.ignore_patterns("__pyc*")
    )
    monkeypatch.setattr(key, "__file__", str(package / "feature_store" / "key.py"))
    assert software.__wrapped__() == software()
    with (package / "models" / "eventgpt" / "modeling_eventgpt.py").open("a") as file:
        file.write("# mended\n")
    assert software.__wrapped__() != software()
