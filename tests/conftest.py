"""Fixtures of all tests: reference material where it is there, and the demo model."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

# What is compiled at its first call takes longer then.
settings.register_profile("unfuse", deadline=None)
settings.load_profile("unfuse")

if not torch.cuda.is_available():
    # Kernels then run in Triton's interpreter, one program after the other. Read where triton is imported.
    os.environ["TRITON_INTERPRET"] = "1"

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

CLOCK = ("cli", "docs", "measure", "perfetto", "protocols", "report/html", "verification")
"""Folders whose tests look at a clock: another test beside them would be seen."""
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    folders = [Path(__file__).parent / name for name in CLOCK]
    for item in items:
        if any(folder in item.path.parents for folder in folders):
            item.add_marker("clock")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache folder of this session's own, so that the demo is built by the code under test."""
    folder = tmp_path_factory.mktemp("cache")
    os.environ["UNFUSE_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    del os.environ["UNFUSE_CACHE"], os.environ["XDG_CACHE_HOME"]


@pytest.fixture(scope="session")
def shared_dir():
    if not SHARED.is_dir():
        pytest.skip("the reference material (../shared) is not here")
    return SHARED


@pytest.fixture(scope="session")
def golden_dir(shared_dir):
    return shared_dir / "golden"


@pytest.fixture(scope="session")
def recordings_dir(shared_dir):
    return shared_dir / "data" / "events"


@pytest.fixture(scope="session")
def demo_model():
    from unfuse.adapters.registry import load

    with load("demo", device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def demo_sample():
    from unfuse.samples.demo import demo_sample

    return demo_sample("demo:0")
