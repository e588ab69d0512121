from types import SimpleNamespace

import pytest

import unfuse
from tests.benchmarking.benching import QUICK
from unfuse.benchmarking import PROTOCOLS, BenchSettings
from unfuse.benchmarking.drafting import SampleDrafters
from unfuse.benchmarking.pairs import Pairs
from unfuse.benchmarking.setup import BenchSetup
from unfuse.loading import load
from unfuse.measure.timers import HostTimer
from unfuse.records import read_manifest
from unfuse.samples import Dataset
from unfuse.samples.demo import demo_dataset
from unfuse.speculation.history import History

END = 2


def record(name, *token_ids, status="ok"):
    return SimpleNamespace(sample_id=name, token_ids=token_ids, status=status, warmup=False)


def learnt(drafter):
    return [tuple(answer.tolist()) for answer in drafter.answers]


def test_a_sample_never_sees_its_own_answer_or_a_later_one():
    drafters = SampleDrafters(lambda: History(100, [END]))
    for name, answer in {"a": (5, 6, END), "b": (7, END), "c": (5, 6, END)}.items():
        before = learnt(drafters.before(name))
        drafters.learn(record(name, *answer))
        drafters.learn(record(name, 9, 9))  # a repeat
        assert learnt(drafters.before(name)) == before
    assert learnt(drafters.before("b")) == [(5, 6, END)]
    assert learnt(drafters.before("a")) == []
    assert learnt(drafters.before("new")) == [(5, 6, END), (7, END), (5, 6, END)]
    assert drafters.knows((7, END))
    assert not drafters.knows((9, 9))


def test_answers_of_a_file_are_known_to_every_sample():
    drafters = SampleDrafters(lambda: History(100, [END]), [[8, END]])
    drafters.learn(record("a", 5, END))
    assert learnt(drafters.before("a")) == [(8, END)]
    assert learnt(drafters.before("b")) == [(8, END), (5, END)]
    assert drafters.knows([8, END])


def test_a_history_is_made_outside_of_the_timed_runs(demo_model, fake_time):
    """A repeat of an earlier sample needs the history before the sample again."""

    def make():
        fake_time.sleep(5.0)
        return History(1000, [END])

    settings = BenchSettings(**QUICK)
    setup = BenchSetup(
        model=demo_model, protocol=PROTOCOLS["decoupled"], settings=settings, timer=HostTimer(),
        drafters=SampleDrafters(make),
    )  # fmt: skip
    pairs, samples = Pairs(setup), demo_dataset(max_samples=2).samples
    for sample in (*samples, *samples):
        for record in pairs.measure(sample):
            assert (record.status, record.staged_host_ms, record.e2e_host_ms) == ("ok", 0.0, 0.0)


def test_failed_samples_are_not_learnt():
    drafters = SampleDrafters(lambda: History(100, [END]))
    drafters.learn_all([record("a", 5, status="failed"), record("b", 6)])
    assert learnt(drafters.before("c")) == [(6,)]


@pytest.fixture(scope="module")
def repeated():
    """Three scenes, and the first of them again under another name."""
    from dataclasses import replace

    samples = demo_dataset(max_samples=3).samples
    return Dataset(name="repeated", samples=(*samples, replace(samples[0], sample_id="again")))


@pytest.fixture(scope="module")
def runs(repeated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    quick = {"device": "cpu", "max_new_tokens": 24, "num_warmups": 1, "balance_seconds": 0.0, "energy_seconds": 0.0}
    return {
        method: unfuse.bench("demo", repeated, speculate=method, output=folder / method, **quick)
        for method in ("off", "history")
    }


def test_a_benchmark_with_speculation_has_the_answers_of_one_without(runs):
    on, off = runs["history"], runs["off"]
    for mine, theirs in zip(on.records, off.records, strict=True):
        assert mine.token_ids == theirs.token_ids
        assert theirs.decode_passes is None
        assert mine.decode_passes + mine.accepted_tokens == mine.output_tokens - 1
        assert sum(mine.accepted_by_pass) == mine.accepted_tokens
        assert len(mine.accepted_by_pass) == mine.decode_passes


def test_known_answers_are_counted_apart(runs):
    found = runs["history"].summary().speculation
    first, *_, again = [each for each in runs["history"].records if not each.warmup]
    assert (first.answer_known, again.answer_known) == (False, True)
    assert again.decode_passes < first.decode_passes
    assert (found.samples, found.answers_known) == (4, 1)
    assert sum(found.passes_by_accepted) == found.decode_passes
    assert found.tpot_known.count == 1
    text = (runs["history"].folder / "report.md").read_text()
    assert "Speculation: " in text
    assert "1 of 4 answers were known before" in text
    assert runs["off"].summary().speculation is None


def test_the_run_says_that_speculation_was_on(runs):
    config = read_manifest(runs["history"].folder).config
    assert (config["speculate"], config["draft_tokens"], config["history"]) == ("history", None, None)
    assert "speculate" not in read_manifest(runs["off"].folder).config
    assert any("no faster" in note for note in read_manifest(runs["history"].folder).model["notes"])


def test_a_loaded_model_is_benched_without_its_own_drafter(repeated):
    with load("demo", device="cpu", speculate="history") as model:
        run = unfuse.bench(
            model, Dataset(name="one", samples=repeated.samples[:1]), max_new_tokens=8, num_warmups=1,
            balance_seconds=0.0, energy_seconds=0.0,
        )  # fmt: skip
        assert run.records[-1].decode_passes is None
        assert len(model.drafter) == 0
