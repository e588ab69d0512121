"""Executed work beside expected work: which differences are named, and which are within the limits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.records.work_records import CountedWork, StageProducts
from unfuse.report.counted_work import work_problems


def counted(**stages: StageProducts) -> CountedWork:
    return CountedWork(stages=stages, output_tokens=8, source="config")


def stage(expected: dict[str, int], executed: dict[str, int] | None = None) -> StageProducts:
    return StageProducts(expected=expected, executed=expected if executed is None else executed)


ENCODE = {"width 588": 10_000, "width 1024": 900_000, "attention": 90_000}


@given(st.dictionaries(st.sampled_from(["width 1", "width 2", "attention"]), st.integers(0, 10**15)))
@examples(20)
def test_equal_work_has_no_problem(work: dict[str, int]) -> None:
    assert not work_problems(counted(load=stage({}), encode=stage(work), decode=stage(work)))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"width 1024": 930_000}, "extra"),
        ({"width 1024": 870_000}, "too little"),
        ({"width 588": 0}, "too little"),
        ({"width 256": 3_000}, "extra"),
        ({"attention": 93_000}, "extra"),
        ({"attention": 0}, "too little"),
    ],
)
def test_extra_and_missing_work_is_named(change: dict[str, int], kind: str) -> None:
    (problem,) = work_problems(counted(encode=stage(ENCODE, {**ENCODE, **change})))
    (key,) = change
    assert f"encode executes {kind} work" in problem
    assert key in problem


@pytest.mark.parametrize("change", [{"width 1024": 910_000}, {"width 588": 9_000}, {"width 256": 1_900}])
def test_small_differences_are_within_the_limit(change: dict[str, int]) -> None:
    assert not work_problems(counted(encode=stage(ENCODE, {**ENCODE, **change})))


def test_many_small_differences_are_a_problem_together() -> None:
    work = {f"width {width}": 1_000_000 for width in range(10)}
    assert not work_problems(counted(encode=stage(work, dict.fromkeys(work, 1019000))))
    few = {**work, "width 10": 100_000}
    more = {key: flops + 19_500 for key, flops in work.items()} | {"width 10": 115_000, "width 11": 20_000}
    assert work_problems(counted(encode=stage(few, more)))


def test_load_and_preprocess_run_nothing_of_the_model() -> None:
    encode = stage(ENCODE)
    (problem,) = work_problems(counted(load=stage({}, {"width 1024": 30_000}), encode=encode))
    assert problem.startswith("load executes extra work")
    assert not work_problems(counted(preprocess=stage({}, {"width 3": 1_000}), encode=encode))


def test_attention_outside_of_torch_may_be_missing_but_not_extra() -> None:
    missing = counted(encode=stage(ENCODE, {**ENCODE, "attention": 0}))
    assert work_problems(missing)
    assert not work_problems(replace(missing, attention_counted=False))
    extra = counted(encode=stage(ENCODE, {**ENCODE, "attention": 200_000}))
    assert work_problems(replace(extra, attention_counted=False))


def test_features_that_are_changed_are_a_problem() -> None:
    sound = counted(encode=stage(ENCODE))
    assert not work_problems(replace(sound, features_in_prompt=True))
    assert work_problems(replace(sound, features_in_prompt=False)) == [
        "prefill changes the features before they enter the prompt"
    ]
