"""Fixtures of all tests: reference material if present, and the demo model."""

from __future__ import annotations

import copy
import gc
import importlib
import os
import sys
from pathlib import Path

import pytest

from tests.examples import register_profiles

# With this variable, which images of containers set, each of the many processes would compile all that it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

register_profiles()

LONG = (
    "training", "engines/graphed", "batch_inference", "benchmarks", "cli", "benchmarking", "serving", "docs",
    "test_api.py", "report/html",
)  # fmt: skip
"""The longest tests start first, so that no core waits for them at the end."""
WITH_TORCH = "torch", "transformers", "torchao", "accelerate"
OTHERS = "playwright.sync_api", "fastapi", "altair", "openai", "scipy.stats", "sympy"
"""Packages that take longest to compile. One worker starts with these and one with torch: each compiles one half."""
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_addoption(pluginmanager):
    """Prepare this process as soon as this file is loaded, before the ``conftest.py`` of a folder imports triton."""
    options = pluginmanager.get_plugin("pytestconfig").known_args_namespace
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if not worker and (getattr(options, "numprocesses", None) or getattr(options, "tx", None)):
        return  # the controller of xdist runs no test, and needs no package
    import_large_packages(worker)
    # Most objects of a test die without the collector, which takes a tenth of the time with the usual thresholds.
    gc.set_threshold(50_000, 20, 20)
    # Threads that wait for each other stall when another program takes a core from one of them.
    sys.modules["torch"].set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the processes that tests start


def import_large_packages(worker):
    """Import torch; in a worker of xdist, import all large packages, in an order that differs between two workers."""
    others_first = worker and int(worker.removeprefix("gw")) % 2
    for name in OTHERS if others_first else ():
        importlib.import_module(name)
    import torch

    if not torch.cuda.is_available():
        # Kernels run in Triton's interpreter, one program after the other. Set before a package imports triton.
        os.environ["TRITON_INTERPRET"] = "1"
    for name in (*WITH_TORCH, *(() if others_first else OTHERS)) if worker else ():
        importlib.import_module(name)


def pytest_runtest_setup(item):
    """Exclude all present objects from garbage collections: benchmarks collect before every repeat."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: next((i for i, name in enumerate(LONG) if _under(item, (name,))), len(LONG)))


def _under(item, names):
    return any(path in (item.path, *item.path.parents) for path in (Path(__file__).parent / name for name in names))


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Use a new cache folder for this session, so that the code under test builds the demo; workers share it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["UNFUSE_CACHE"] = os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    del os.environ["UNFUSE_CACHE"], os.environ["XDG_CACHE_HOME"]


@pytest.fixture(scope="session", autouse=True)
def few_repeats():
    """Repeat measurements rarely by default."""
    from tests.repeats import use_few_repeats

    with pytest.MonkeyPatch.context() as patch:
        use_few_repeats(patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def forked_processes():
    """Fork the processes of ``unfuse run`` and of pools after their imports; other tests cover their start."""
    from tests.forked import fork_instead, fork_pools
    from unfuse import processes
    from unfuse.samples import writing

    with pytest.MonkeyPatch.context() as patch:
        fork_instead(patch, processes, programs=("unfuse.batch_inference.",))
        fork_pools(patch, writing)
        yield


@pytest.fixture
def fake_time(monkeypatch):
    """Time of every stage clock, moved only by the test."""
    from unfuse.measure import host_time
    from unfuse.testing import FakeTime

    made = FakeTime()
    monkeypatch.setattr(host_time, "now_ns", made.perf_counter_ns)
    return made


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
    from unfuse.loading import load

    with load("demo", device="cpu") as model:
        yield model


@pytest.fixture(scope="session")
def demo_sample():
    from unfuse.samples.demo import demo_sample

    return demo_sample("demo:0")


@pytest.fixture(scope="session")
def small_model(demo_model):
    """The demo model with one layer in its tower and one in its decoder: no sensible answers, in less time."""
    from unfuse.adapters.eventgpt import EventGPTAdapter
    from unfuse.engines.eager import EagerEngine
    from unfuse.staged_model import StagedModel

    source = demo_model.adapter
    network = copy.deepcopy(source.model)
    network.model.layers = network.model.layers[:1]
    network.config.num_hidden_layers = 1
    encoder = next(module for module in network.model.visual_tower.modules() if type(module).__name__ == "CLIPEncoder")
    encoder.layers = encoder.layers[:1]
    adapter = EventGPTAdapter(network, source.preprocessor, source.fingerprint)
    return StagedModel("small", adapter, EagerEngine(adapter.language))


@pytest.fixture(scope="session")
def small_sample(tmp_path_factory):
    """A recording of 48 x 64 pixels."""
    from unfuse.events import write_eventgpt_npy
    from unfuse.samples import Sample
    from unfuse.testing import synthetic_stream

    path = tmp_path_factory.mktemp("small") / "scene.npy"
    write_eventgpt_npy(path, synthetic_stream())
    return Sample.from_events(path)
