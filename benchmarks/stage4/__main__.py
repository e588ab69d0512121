"""Measure EventGPT-7B's architecture on one GPU: engine ``graphed`` beside Hugging Face and the device's floors.

One run on random weights made on the device (timings only): 5 frames at 336, 636 positions, 46 new tokens. Start-up
comes first, in separate processes, then engine graphed, then the baselines. A failed part has its reason in its cell.

    python -m benchmarks.stage4 --out FOLDER       the table, and every raw value as JSON
    python -m benchmarks.stage4 --quick-cpu        a tiny model on the CPU: only whether the script runs
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
from pathlib import Path

import torch

from benchmarks.stage4.case import GREEDY, NEW_TOKENS, make_case, staged
from benchmarks.stage4.measures import (
    measure_answers,
    measure_floors,
    measure_graphed,
    measure_hugging_face,
    measure_start_up,
    measure_static,
    measure_truth,
    start_up,
)
from benchmarks.stage4.record import Bench, release_memory
from benchmarks.stage4.table import report

GIB = 2**30


@torch.no_grad()
def measure(bench: Bench, smoke: bool, out: Path | None) -> str:
    """Measure everything, in an order in which no part disturbs a later part."""
    measure_start_up(bench, smoke)
    case = make_case(smoke)
    measure_floors(bench, case)
    bench.log(f"{bench.about['ceilings']}; next: engine graphed, with what the start-up left on disk")
    release_memory()
    if not smoke:
        torch.cuda.reset_peak_memory_stats()
    weights = sum(tensor.nbytes for tensor in (*case.model.parameters(), *case.model.buffers()))

    def record_memory(cache: int = 0, **kinds: str) -> None:
        """Record the allocator's GiB above the weights and a cache."""
        if not smoke:
            sizes = {name: getattr(torch.cuda, kind)() for name, kind in kinds.items()}
            bench.found.update({name.replace("_", " "): (n - weights - cache) / GIB for name, n in sizes.items()})

    models = {name: staged(case.adapter, name) for name in ("graphed", "eager")}
    graphed, eager = models["graphed"], models["eager"]
    features = graphed.encode(case.prepared)
    prompt = case.adapter.prompt(case.prepared, features, digest=False)
    list(graphed.engine.decode(graphed.engine.prefill(prompt, GREEDY), NEW_TOKENS))
    needed = case.position_bytes * (case.length + NEW_TOKENS)
    record_memory(needed, peak_reserved="max_memory_reserved", peak_allocated="max_memory_allocated")
    gc.collect()
    record_memory(at_rest="memory_allocated")

    measure_answers(bench, case, graphed, features, prompt, "graphed")
    measure_graphed(bench, case, graphed, features)
    report(bench, case, out)
    with bench.attempt("truth"):
        bench.require(seconds=30)
        measure_truth(bench, case, models, prompt)
    bench.notes += [note for note in graphed.notes if note not in case.adapter.notes]
    record_memory(before_close="memory_allocated")
    graphed.close()
    release_memory()
    record_memory(left_allocated="memory_allocated", left_reserved="memory_reserved")
    if not smoke:
        # cuBLAS keeps a workspace per stream for the whole process; it is not the engine's memory.
        with bench.attempt("library"):
            torch._C._cuda_clearCublasWorkspaces()
            record_memory(left_without_library="memory_allocated")
    report(bench, case, out)

    measure_answers(bench, case, eager, features, prompt, "eager")
    measure_hugging_face(bench, case, prompt)
    eager.close()
    for rows in (1, *case.batches):
        report(bench, case, out)
        measure_static(bench, case, prompt, rows)
    return report(bench, case, out)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, help="folder for table.md and table.json")
    parser.add_argument("--repeats", type=int, default=10, help="of each measurement, after warm-ups")
    parser.add_argument("--budget", type=float, default=480, help="seconds; no part starts that would exceed it")
    parser.add_argument("--quick-cpu", action="store_true", help="smoke run of a tiny model")
    parser.add_argument("--only", choices=["startup"], help="one start of the engine (the script's own child process)")
    arguments = parser.parse_args()
    if arguments.repeats < 2:
        parser.error("--repeats: at least 2")
    if arguments.only:
        with torch.no_grad():
            start_up(arguments.quick_cpu)
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        # Read when an engine is created, here and in the child processes.
        os.environ |= {"UNFUSE_CACHE": f"{folder}/unfuse", "TRITON_CACHE_DIR": f"{folder}/triton"}
        print(measure(Bench(arguments.repeats, arguments.budget), arguments.quick_cpu, arguments.out))


if __name__ == "__main__":
    main()
