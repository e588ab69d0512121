"""Short benchmark runs on a fake host."""

from __future__ import annotations

from unfuse.benchmarking import BenchListener, BenchSettings, RunOptions, bench_model
from unfuse.measure.isolation import CpuTimes

QUICK = {"max_new_tokens": 4, "num_warmups": 0, "noise_repeats": 0, "balance_seconds": 0.0, "energy_seconds": 0.0}


class QuietHost:
    """A machine that nobody else uses, unless ``others`` says so."""

    cores = 2

    def __init__(self):
        self.at_s = self.busy_s = 0.0
        self.others = 0.0

    def load_average(self):
        return 0.1

    def times(self):
        self.at_s += 1.0
        self.busy_s += self.others
        return CpuTimes(at_s=self.at_s, busy_s=self.busy_s, own_s=0.0)

    def own_pids(self):
        return frozenset({1000})

    def process_name(self, pid):
        return "python"


class Listener(BenchListener):
    """Passes records and warnings on to functions."""

    def __init__(self, *, record=None, warning=None):
        self.record = record or super().record
        self.warning = warning or super().warning


def bench(model, dataset, guard, *, output=None, protocol="decoupled", resume=False, on_record=None, **changes):
    settings = BenchSettings(**{**QUICK, **changes})
    options = RunOptions(guard=guard, output=output, resume=resume, listener=Listener(record=on_record))
    return bench_model(model, dataset, settings, options, protocol=protocol)
