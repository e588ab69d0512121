"""A GPU, a host and a guard that tests of protocols set themselves."""

from __future__ import annotations

import pytest

from tests.benchmarking.benching import QuietHost
from unfuse.measure.isolation import IsolationGuard
from unfuse.samples.demo import demo_dataset
from unfuse.testing import FakeGpu


@pytest.fixture
def gpu():
    return FakeGpu()


@pytest.fixture
def host():
    return QuietHost()


@pytest.fixture
def guard(gpu, host):
    return IsolationGuard(host=host, gpu=gpu, sleep=lambda _: None)


@pytest.fixture(scope="module")
def dataset():
    return demo_dataset(max_samples=2)
