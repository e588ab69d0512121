"""While a stage is timed, the dashboard does nothing: no thread of it runs, and nothing is written."""

from __future__ import annotations

import io
import threading

import pytest
from rich.console import Console
from rich.progress import Progress

from unfuse.api.benchmarking import BenchOptions, prepare_bench
from unfuse.benchmarking.pairs import Pairs
from unfuse.cli.bench import run_and_show
from unfuse.loading import Placement

OPTIONS = BenchOptions(
    max_samples=2,
    placement=Placement("cpu"),
    settings={"max_new_tokens": 3, "num_warmups": 1, "balance_seconds": 0.0, "noise_repeats": 1},
)


class Terminal(io.StringIO):
    """A file that says it is one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def watched(tmp_path, monkeypatch):
    """Runs the demo on a terminal; gives threads beside its own, and characters written, of every timed call."""
    monkeypatch.chdir(tmp_path)
    file, seen = Terminal(), []
    timed = Pairs._timed

    def watch(pairs, body):
        def watched_body():
            written = file.tell()
            run = body()
            seen.append(([t.name for t in threading.enumerate() if t not in before], file.tell() - written))
            return run

        return timed(pairs, watched_body)

    monkeypatch.setattr(Pairs, "_timed", watch)
    before = set(threading.enumerate())

    def run():
        console = Console(file=file, width=80, height=24, force_terminal=True, _environ={"TERM": "xterm"})
        run_and_show(console, prepare_bench(["demo"], OPTIONS))
        return seen, file.getvalue()

    return run


def test_nothing_of_the_display_runs_while_a_stage_is_timed(watched):
    seen, out = watched()
    assert len(seen) >= 7, "two runs a sample, a warm-up and a repeat"
    assert seen == [([], 0)] * len(seen)
    assert "2 of 2 samples" in out, "it was drawn"
    assert "sum of stages" in out


def test_control_a_display_that_draws_by_itself_is_seen(watched, monkeypatch):
    quiet = Progress.__init__

    def restless(progress, *columns, **options):
        quiet(progress, *columns, **{**options, "auto_refresh": True, "refresh_per_second": 100})

    monkeypatch.setattr(Progress, "__init__", restless)
    seen, _ = watched()
    assert any(threads for threads, _ in seen)
