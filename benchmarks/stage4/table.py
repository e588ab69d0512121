"""The table of what was measured, with its targets."""

from __future__ import annotations

import json
import time
from pathlib import Path

from benchmarks.stage4.case import ASKED, FRAMES, NEW_TOKENS, Case
from benchmarks.stage4.record import Bench

STATIC = "HF static cache + torch.compile"


def table(bench: Bench, case: Case) -> list[str]:
    """The table's lines, as far as they were measured."""
    lines = ["| what | ours | baselines | floor | floor / ours | target | met |", "|---|---|---|--:|--:|--:|---|"]
    at_home = "H200" in str(bench.about["device_name"])

    def row(
        what: str, name: str, limit: float | None, others: str, unit: str = "ms", part: str = "", anywhere: bool = False
    ) -> None:
        """``anywhere``: the limit is no time of an H200."""
        spread = bench.quartiles.get(name)
        ours = bench.cell(name, unit, part) + (f" [{spread[0]:.2f}, {spread[2]:.2f}]" if spread else "")
        floor = f"floor {name.removeprefix('graphed ')}"
        bound = bench.cell(floor) if floor in bench.found else ""
        share = f"{bench.found[floor] / bench.found[name]:.0%}" if {floor, name} <= bench.found.keys() else ""
        target = "unknown" if limit is None else f"<= {limit:.4g} {unit}".rstrip()
        unknown = case.smoke or limit is None or name not in bench.found or not (at_home or anywhere)
        met = "-" if unknown or limit is None else "yes" if bench.found[name] <= limit else "**no**"
        lines.append(f"| {what} | {ours} | {others} | {bound} | {share} | {target} | {met} |")

    def beside(unit: str = "ms", part: str = "", **names: str) -> str:
        return "; ".join(f"{k.replace('_', ' ')} {bench.cell(name, unit, part)}" for k, name in names.items())

    both = beside(HF_generate="HF decode", engine_eager="eager decode")
    row("decode, a token", "graphed decode", 3.5, f"{both}; {STATIC} {bench.cell('static 1')}")
    row("prefill, features in place to first token", "graphed prefill", 14, beside(HF_eager="eager prefill"))
    row(f"encode {FRAMES} frames", "graphed encode", 4.5, beside(one_by_one="one by one", batched="eager encode"))
    hf, whole = bench.found.get("HF whole"), bench.found.get("graphed whole")
    times = f", {hf / whole:.2f} times as long" if hf and whole else ""
    hf_cell = beside(HF_generate="HF whole") + times
    row(
        "encode + prefill + decode, in a sixth of HF's time",
        "graphed whole",
        hf / 6 if hf else None,
        hf_cell,
        anywhere=True,
    )
    first = beside(first_question="graphed prefill", its_encode="graphed encode", engine_eager="eager second")
    row(f"second question, {ASKED} new ids to first token", "graphed second", 4.5, first)
    for rows, limit in zip(case.batches, (5.5, 10.0), strict=True):
        compiled = f"{STATIC} {bench.cell(f'static {rows}')}"
        row(f"decode step of {rows} rows", f"graphed batch {rows}", limit, compiled)
    for name, limit in (("cold start", 60), ("warm start", 15)):
        parts = beside("s", name, engine=f"{name}: engine", first_answer=f"{name}: first answer")
        row(f"{name}, engine and first answer", name, limit, parts, "s", anywhere=True)
    others = beside("GiB", peak_allocated="peak allocated", at_rest="at rest")
    row("memory above weights and cache, peak reserved", "peak reserved", 2, others, "GiB", anywhere=True)
    closed = beside("GiB", allocated="left allocated", reserved="left reserved")
    closed += "; " + beside("GiB", without_the_library="left without library")
    before = beside("GiB", allocated_before="before close")
    lines.append(f"| memory above weights after close() | {closed} | {before} | | | | - |")
    errors = beside("", "truth", eager="eager logits, max", graphed="graphed logits, max")
    same, gap, error = (bench.found.get(name) for name in ("same tokens", "parted", "eager logits, max"))
    shown = bench.cell("same tokens", f"of {NEW_TOKENS}", "truth")
    shown += f", then two whose float32 logits are {gap:.2g} apart" if gap is not None else ""
    fine = same == NEW_TOKENS or (gap is not None and error is not None and gap <= 2 * error)
    met = "-" if case.smoke or same is None else "yes" if fine else "**no**"
    target = "all, or apart by no more than twice eager's error"
    lines.append(f"| greedy tokens, as eager's | {shown} | largest error of logits: {errors} | | | {target} | {met} |")
    for what in ("logits", "features"):
        errors = beside("", "truth", graphed=f"graphed {what}", eager=f"eager {what}")
        row(
            f"{what}: relative L2 error against float32, over eager's",
            f"{what} ratio",
            1,
            errors,
            "",
            "truth",
            anywhere=True,
        )
    return lines


def report(bench: Bench, case: Case, out: Path | None) -> str:
    """The table and what it was measured on; with every raw value also in files."""
    about, smoke = bench.about, "**Smoke run on CPU, no measurement: a tiny model, engine eager as graphed.**\n"
    driver = ((about["cuda"] or {}).get("state") or {}).get("driver_version")
    versions = ", ".join(f"{name} {about['packages'][name]}" for name in ("torch", "transformers"))
    lines = [
        *([smoke] if case.smoke else []),
        *table(bench, case),
        "",
        f"- {about['device_name']}, driver {driver}, {versions}, triton {about['triton']}, {about['cpu_cores']} cores",
        f"- ceilings measured in this run: {about['ceilings']}; floors are bytes and products over them",
        *(
            []
            if "H200" in str(about["device_name"])
            else ["- targets of time are those of an H200, and not judged here"]
        ),
        f"- medians of {bench.repeats} [quartiles]; prompt of {case.length}, {NEW_TOKENS} new tokens; random weights",
        *(f"- {note}" for note in bench.notes),
    ]
    if out:
        out.mkdir(parents=True, exist_ok=True)
        (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
        whole = vars(bench) | {"seconds": time.perf_counter() - bench.started, "smoke": case.smoke}
        (out / "table.json").write_text(json.dumps(whole, indent=1), encoding="utf-8")
    return "\n".join(lines)
