"""Short benchmark runs on a fake host."""

from __future__ import annotations

from unfuse.measure.isolation import CpuTimes
from unfuse.protocols import BenchSettings, bench_model

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


def bench(model, dataset, guard, *, output=None, protocol="decoupled", resume=False, on_record=None, **changes):
    settings = BenchSettings(**{**QUICK, **changes})
    return bench_model(
        model, dataset, settings, guard=guard, output=output, protocol=protocol, resume=resume, on_record=on_record
    )
