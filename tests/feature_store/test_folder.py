"""The bound, and the order of eviction: against a model in plain Python."""

from __future__ import annotations

import os
import tempfile
import time

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.examples import examples
from tests.feature_store.conftest import MODEL, scene
from unfuse.feature_store import FeatureStore, folder
from unfuse.features import pack

ROWS = {n: 2 + 30 * (n % 4) for n in range(12)}
BOUND = 6000


def features(number):
    return scene(number, rows=ROWS[number])


class Bounded(RuleBasedStateMachine):
    """Two processes' views of one folder, and a list of (number, size) by last use."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.stores = [FeatureStore(self.folder.name, BOUND) for _ in range(2)]
        self.used = {}
        self.clock = 0

    def teardown(self):
        self.folder.cleanup()

    def used_now(self, number):
        """File times of their own, since a disk's clock may not distinguish two uses."""
        self.clock += 1
        path = self.stores[0].entry_path(features(number).provenance)
        os.utime(path, ns=(0, self.clock * 10**9))
        self.used.pop(number, None)
        self.used[number] = path.stat().st_size

    @rule(number=st.sampled_from(sorted(ROWS)), by=st.integers(0, 1))
    def put(self, number, by):
        before = self.stores[by].counts.evicted
        self.stores[by].put(features(number))
        self.used.pop(number, None)
        size = self.stores[by].entry_path(features(number).provenance).stat().st_size
        total = sum(self.used.values()) + size
        gone = 0
        if total > BOUND:
            for oldest, freed in list(self.used.items()):
                if total <= 0.9 * BOUND:
                    break
                total, gone = total - freed, gone + 1
                del self.used[oldest]
        assert self.stores[by].counts.evicted - before == gone
        self.used_now(number)

    @rule(number=st.sampled_from(sorted(ROWS)), by=st.integers(0, 1))
    def get(self, number, by):
        found = self.stores[by].get(MODEL, f"{number:064x}", "float32")
        assert (found is not None) == (number in self.used)
        if found is not None:
            assert found.digest == features(number).digest
            noted = self.stores[by].entry_path(found.provenance).stat().st_mtime_ns
            assert noted > (self.clock + 1) * 10**9, "noted as used: now, and not at a time of this test's own"
            self.used_now(number)

    @precondition(lambda self: self.used)
    @rule(data=st.data(), by=st.integers(0, 1))
    def damage(self, data, by):
        number = data.draw(st.sampled_from(sorted(self.used)))
        path = self.stores[by].entry_path(features(number).provenance)
        path.write_bytes(path.read_bytes()[::-1])
        assert self.stores[by].get(MODEL, f"{number:064x}", "float32") is None
        del self.used[number]

    @precondition(lambda self: self.used)
    @rule()
    def killed_while_it_changed_something(self):
        (self.stores[0].path / "ledger").write_text("")

    @rule(by=st.integers(0, 1))
    def clear(self, by):
        self.stores[by].clear()
        self.used.clear()

    @invariant()
    def stored_entries_are_the_used_ones(self):
        found = self.stores[0].info()
        assert (found.entries, found.entry_bytes) == (len(self.used), sum(self.used.values()))
        assert found.entry_bytes <= BOUND
        ledger = self.stores[0].path / "ledger"
        if ledger.exists() and (text := ledger.read_text()):
            assert int(text) == found.entry_bytes


Bounded.TestCase.settings = examples(25, stateful_step_count=30)
test_least_recently_used_goes_first = Bounded.TestCase


def test_no_put_looks_at_everything_unless_the_bound_is_passed(tmp_path, monkeypatch):
    size = len(pack(scene(0), {"made_by": "x" * 100}))
    opened = FeatureStore(tmp_path, 100 * size)
    opened.put(scene(0))
    looks = []
    entries = folder.StoreFolder.entries
    monkeypatch.setattr(folder.StoreFolder, "entries", lambda self: looks.append(1) or entries(self))
    for number in range(1, 50):
        opened.put(scene(number))
        assert opened.get(MODEL, f"{number:064x}", "float32") is not None
    assert not looks
    assert int((tmp_path / "ledger").read_text()) == opened.info().entry_bytes


def test_a_scene_that_is_larger_than_the_bound(tmp_path):
    opened = FeatureStore(tmp_path, 3000)
    opened.put(scene(1))
    opened.put(scene(2, rows=5000))
    assert (opened.counts.stored, opened.counts.unstored, opened.counts.evicted) == (1, 1, 0)
    assert "more than the store's bound" in opened.trouble
    assert opened.get(MODEL, f"{1:064x}", "float32") is not None


def test_files_that_somebody_removed_are_counted_at_the_next_look(tmp_path):
    size = len(pack(scene(0), {"made_by": "x" * 100}))
    opened = FeatureStore(tmp_path, 10 * size)
    for number in range(5):
        opened.put(scene(number))
    for path in list(tmp_path.rglob("*.safetensors"))[:3]:
        path.unlink()
    for number in range(100, 140):
        opened.put(scene(number))
    assert int((tmp_path / "ledger").read_text()) == opened.info().entry_bytes <= 10 * size


@pytest.mark.parametrize(("age_s", "stays"), [(0, True), (300, True), (3600, False)])
def test_what_a_killed_process_left_is_cleared_away(tmp_path, age_s, stays):
    FeatureStore(tmp_path).put(scene(1))
    left = tmp_path / "tmp" / "4711.abc"
    left.write_bytes(b"half a scene")
    os.utime(left, (time.time() - age_s,) * 2)
    FeatureStore(tmp_path).put(scene(2))
    assert left.exists() == stays
