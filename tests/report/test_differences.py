"""Differences between two runs, and equal runs that only look different."""

from __future__ import annotations

from dataclasses import replace

import pytest

from unfuse.report.differences import environment_differences, work_differences


@pytest.fixture
def differ(manifest, make_run):
    def differ(change, **of_manifest):
        """Differences after changing the last sample of the second run."""
        before = [replace(r, question="what?", media_sha256="a" * 64, token_ids=(1, 2)) for r in make_run(4)]
        after = [*before[:-1], *([replace(before[-1], **change)] if change is not None else [])]
        return work_differences((manifest, before), (replace(manifest, **of_manifest), after))

    return differ


def test_equal_work(differ):
    found = differ({})
    assert (found.values, found.one_sided) == ({}, ())


@pytest.mark.parametrize(
    ("change", "name", "values"),
    [
        ({"output_tokens": 500}, "output tokens", ("512", "500")),
        ({"question": "why?"}, "question", ("what?", "why?")),
        ({"media_sha256": "b" * 64}, "media's sha256", ("a" * 12, "b" * 12)),
        ({"text_tokens": 48}, "text tokens of the prompt", ("47", "48")),
        ({"token_ids": (1, 3)}, "answer", ("one", "another (s3)")),
    ],
)
def test_one_unlike_sample_is_seen(differ, change, name, values):
    assert differ(change).values == {f"{name}, in 1 of 4 common samples": values}


def test_swapped_lengths_are_seen(manifest, make_run):
    """Both runs wrote 10 and 20 tokens; no sample wrote as many as before."""
    first, second = make_run(2)
    before = [replace(first, output_tokens=10), replace(second, output_tokens=20)]
    after = [replace(first, output_tokens=20), replace(second, output_tokens=10)]
    found = work_differences((manifest, before), (manifest, after)).values
    assert found == {"output tokens, in 2 of 2 common samples": ("10 to 20", "10 to 20")}


def test_what_one_run_did_not_record_is_no_difference(differ, manifest, make_run):
    found = work_differences((manifest, make_run(2)), (manifest, [replace(r, frame_size=(4, 5)) for r in make_run(2)]))
    assert (found.values, found.one_sided) == ({}, ("frame size",))


@pytest.mark.parametrize(
    ("of_manifest", "values"),
    [
        ({"config": {"max_new_tokens": 64, "seed": 0}}, {"option max_new_tokens": ("512", "64")}),
        ({"config": {"max_new_tokens": 512, "seed": 0, "balance_seconds": 3}}, {}),
        ({"model": {"name": "demo", "dtype": "bfloat16"}}, {"dtype": ("None", "bfloat16")}),
        ({"model": {"name": "other"}}, {"model": ("demo", "other")}),
    ],
)
def test_options_and_placement(differ, of_manifest, values):
    assert differ({}, **of_manifest).values == values


def test_an_option_of_a_newer_version(differ, manifest):
    found = differ({}, config={**manifest.config, "later": False})
    assert (found.values, found.one_sided) == ({}, ("option later",))


def test_equal_weights_are_one_model(manifest, make_run):
    one = replace(manifest, model={"name": "a/model", "fingerprint": "f" * 64})
    other = replace(manifest, model={"name": "b/model", "fingerprint": "f" * 64})
    assert work_differences((one, make_run()), (other, make_run())).values == {}
    changed = replace(manifest, model={"name": "a/model", "fingerprint": "e" * 64})
    assert work_differences((one, make_run()), (changed, make_run())).values == {"weights": ("f" * 12, "e" * 12)}


def test_numbers_of_samples(differ):
    assert differ(None).values == {"samples measured": ("4", "3")}


def test_other_samples_are_compared_as_a_whole(manifest, make_run):
    others = [replace(r, sample_id=f"x{r.sample_id}", text_tokens=12) for r in make_run(2)]
    found = work_differences((manifest, make_run(2)), (manifest, others))
    assert found.values == {"text tokens of the prompt": ("47", "12")}


def test_a_gpus_passing_state_is_no_difference(manifest):
    def at(watts, clock, driver):
        state = {"power.draw": watts, "clocks.sm": clock, "temperature.gpu": watts, "driver_version": driver}
        return replace(
            manifest, environment={**manifest.environment, "load_average": [watts], "cuda": {"state": state}}
        )

    found = environment_differences(at("100 W", "1 MHz", "1"), at("200 W", "2 MHz", "2"))
    assert found.values == {"cuda.state.driver_version": ("1", "2")}


@pytest.mark.parametrize("name", ["torch_threads", "cpu_affinity", "python", "platform", "device_name"])
def test_environment(manifest, name):
    one, other = (replace(manifest, environment={name: value}) for value in (1, 2))
    found = environment_differences(one, other)
    assert (found.values, found.one_sided) == ({name: ("1", "2")}, ())
    assert environment_differences(one, replace(manifest, environment={})).one_sided == (name,)
