"""Format the measurements as a table with targets."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.stage4.case import FRAMES, NEW_TOKENS, QUESTION_IDS, Case
from benchmarks.stage4.record import Bench

STATIC: Final = "HF static cache + torch.compile"
_HEADER: Final = "| what | ours | baselines | floor | floor / ours | target | met |\n|---|---|---|--:|--:|--:|---|"


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One measurement beside its baselines, its floor and its target."""

    what: str
    name: str
    """Name of the measurement in ``Bench.found``."""
    limit: float | None
    """Target, at most; None is unknown."""
    others: str
    """Cell of the baselines."""
    unit: str = "ms"
    part: str = ""
    """Part of the run that gives the measurement, if named otherwise."""
    any_device: bool = False
    """Whether the limit holds on every device, not only on an H200."""

    def line(self, bench: Bench, case: Case) -> str:
        """Return the row as Markdown."""
        name, limit = self.name, self.limit
        quartiles = bench.quartiles.get(name)
        spread = f" [{quartiles[0]:.2f}, {quartiles[2]:.2f}]" if quartiles else ""
        floor = f"floor {name.removeprefix('graphed ')}"
        bound = bench.cell(floor) if floor in bench.found else ""
        share = f"{bench.found[floor] / bench.found[name]:.0%}" if {floor, name} <= bench.found.keys() else ""
        target = "unknown" if limit is None else f"<= {limit:.4g} {self.unit}".rstrip()
        judged = not case.smoke and name in bench.found and (self.any_device or _is_h200(bench))
        met = "-" if limit is None or not judged else "yes" if bench.found[name] <= limit else "**no**"
        ours = bench.cell(name, self.unit, self.part) + spread
        return f"| {self.what} | {ours} | {self.others} | {bound} | {share} | {target} | {met} |"


def table(bench: Bench, case: Case) -> list[str]:
    """Return the table's lines, with the reason in every cell that was not measured."""
    return [
        _HEADER,
        *(row.line(bench, case) for row in _time_rows(bench, case)),
        *(row.line(bench, case) for row in _start_and_memory_rows(bench)),
        _memory_after_close(bench),
        _equal_tokens(bench, case),
        *(row.line(bench, case) for row in _error_rows(bench)),
    ]


def _time_rows(bench: Bench, case: Case) -> Iterator[Row]:
    both = _cells(bench, HF_generate="HF decode", engine_eager="eager decode")
    yield Row(
        what="decode, a token",
        name="graphed decode",
        limit=3.5,
        others=f"{both}; {STATIC} {bench.cell('static 1')}",
    )
    yield Row(
        what="prefill, features in place to first token",
        name="graphed prefill",
        limit=14,
        others=_cells(bench, HF_eager="eager prefill"),
    )
    yield Row(
        what=f"encode {FRAMES} frames",
        name="graphed encode",
        limit=4.5,
        others=_cells(bench, one_by_one="one by one", batched="eager encode"),
    )
    hf, whole = bench.found.get("HF whole"), bench.found.get("graphed whole")
    ratio = f", {hf / whole:.2f} times as long" if hf and whole else ""
    yield Row(
        what="encode + prefill + decode, in a sixth of HF's time",
        name="graphed whole",
        limit=hf / 6 if hf else None,
        others=_cells(bench, HF_generate="HF whole") + ratio,
        any_device=True,
    )
    yield Row(
        what=f"second question, {QUESTION_IDS} new ids to first token",
        name="graphed second",
        limit=4.5,
        others=_cells(
            bench, first_question="graphed prefill", its_encode="graphed encode", engine_eager="eager second"
        ),
    )
    for rows, limit in zip(case.batches, (5.5, 10.0), strict=True):
        yield Row(
            what=f"decode step of {rows} rows",
            name=f"graphed batch {rows}",
            limit=limit,
            others=f"{STATIC} {bench.cell(f'static {rows}')}",
        )


def _start_and_memory_rows(bench: Bench) -> Iterator[Row]:
    for name, limit in (("cold start", 60), ("warm start", 15)):
        yield Row(
            what=f"{name}, engine and first answer",
            name=name,
            limit=limit,
            others=_cells(bench, "s", name, engine=f"{name}: engine", first_answer=f"{name}: first answer"),
            unit="s",
            any_device=True,
        )
    yield Row(
        what="memory above weights and cache, peak reserved",
        name="peak reserved",
        limit=2,
        others=_cells(bench, "GiB", peak_allocated="peak allocated", at_rest="at rest"),
        unit="GiB",
        any_device=True,
    )


def _memory_after_close(bench: Bench) -> str:
    closed = _cells(bench, "GiB", allocated="left allocated", reserved="left reserved")
    closed += "; " + _cells(bench, "GiB", without_the_library="left without library")
    before = _cells(bench, "GiB", allocated_before="before close")
    return f"| memory above weights after close() | {closed} | {before} | | | | - |"


def _equal_tokens(bench: Bench, case: Case) -> str:
    errors = _cells(bench, "", "truth", eager="eager logits, max", graphed="graphed logits, max")
    same, gap, error = (bench.found.get(name) for name in ("same tokens", "parted", "eager logits, max"))
    ours = bench.cell("same tokens", f"of {NEW_TOKENS}", "truth")
    ours += f", then two whose float32 logits are {gap:.2g} apart" if gap is not None else ""
    fine = same == NEW_TOKENS or (gap is not None and error is not None and gap <= 2 * error)
    met = "-" if case.smoke or same is None else "yes" if fine else "**no**"
    target = "all, or apart by no more than twice eager's error"
    return f"| greedy tokens, as eager's | {ours} | largest error of logits: {errors} | | | {target} | {met} |"


def _error_rows(bench: Bench) -> Iterator[Row]:
    for kind in ("logits", "features"):
        yield Row(
            what=f"{kind}: relative L2 error against float32, over eager's",
            name=f"{kind} ratio",
            limit=1,
            others=_cells(bench, "", "truth", graphed=f"graphed {kind}", eager=f"eager {kind}"),
            unit="",
            part="truth",
            any_device=True,
        )


def _cells(bench: Bench, unit: str = "ms", part: str = "", **names: str) -> str:
    """Join several measurements, each with its label."""
    return "; ".join(f"{k.replace('_', ' ')} {bench.cell(name, unit, part)}" for k, name in names.items())


def _is_h200(bench: Bench) -> bool:
    return "H200" in str(bench.about["device_name"])


def report(bench: Bench, case: Case, out: Path | None) -> str:
    """Return the table with its device and versions; write it and every raw value to ``out``."""
    about, smoke = bench.about, "**Smoke run on CPU, no measurement: a tiny model, engine eager as graphed.**\n"
    driver = ((about["cuda"] or {}).get("state") or {}).get("driver_version")
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", "transformers"))
    lines = [
        *([smoke] if case.smoke else []),
        *table(bench, case),
        "",
        f"- {about['device_name']}, driver {driver}, {versions}, triton {about['triton']}, {about['cpu_cores']} cores",
        f"- ceilings measured in this run: {about['ceilings']}; floors are bytes and products over them",
        *([] if _is_h200(bench) else ["- targets of time are those of an H200, and not judged here"]),
        f"- medians of {bench.repeats} [quartiles]; prompt of {case.length}, {NEW_TOKENS} new tokens; random weights",
        *(f"- {note}" for note in bench.notes),
    ]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        values = vars(bench) | {"seconds": time.perf_counter() - bench.started, "smoke": case.smoke}
        (out / "table.json").write_text(json.dumps(values, indent=1), encoding="utf-8")
    return "\n".join(lines)
