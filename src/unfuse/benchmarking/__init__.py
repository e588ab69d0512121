"""Benchmarks: four protocols, measured on one model or on several."""

from unfuse.benchmarking.bench import BenchRun, bench_model, read_run
from unfuse.benchmarking.options import BenchListener, RunOptions
from unfuse.benchmarking.protocols import PROTOCOLS
from unfuse.benchmarking.settings import BenchSettings
from unfuse.benchmarking.several import ComparisonRun, ModelSource, bench_several

__all__ = [
    "PROTOCOLS", "BenchListener", "BenchRun", "BenchSettings", "ComparisonRun", "ModelSource", "RunOptions",
    "bench_model", "bench_several", "read_run",
]  # fmt: skip
