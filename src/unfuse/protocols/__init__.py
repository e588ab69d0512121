"""How a run is measured."""

from unfuse.protocols.bench import BenchRun, bench_model
from unfuse.protocols.settings import BenchSettings

__all__ = ["BenchRun", "BenchSettings", "bench_model"]
