"""How a run is measured."""

from unfuse.protocols.bench import PROTOCOLS, BenchRun, bench_model, read_run
from unfuse.protocols.settings import BenchSettings
from unfuse.protocols.several import ComparisonRun, bench_several

__all__ = ["PROTOCOLS", "BenchRun", "BenchSettings", "ComparisonRun", "bench_model", "bench_several", "read_run"]
