"""The seed's commands with the seed's arguments and default paths, over the same benchmark.

EventGPT runs from ``--eventgpt_model_path`` and from nowhere else: a missing checkpoint is an error, never the demo.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import click
from rich.console import Console

from unfuse.adapters.registry import check_model
from unfuse.cli.bench import run_bench
from unfuse.cli.errors import exit_code_of
from unfuse.errors import CheckpointError
from unfuse.report import print_line

_DATASET: Final = "./data/my_egpt_dsec_test/my_egpt_dsec_seq_1s"
_CHECKPOINT: Final = "./checkpoints/EventGPT-7b"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--dataset_dir", default=_DATASET, show_default=True, help="Folder in the instruction-set layout.")
@click.option("--eventgpt_model_path", default=_CHECKPOINT, show_default=True, help="EventGPT checkpoint folder.")
@click.option("--max_samples", type=int, default=None, help="Only the first N samples.")
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--eventgpt_only", is_flag=True, help="Leave the other models out.")
@click.option("--show_samples", is_flag=True, help="Print every sample's answer as well.")
def _four_stages(
    dataset_dir: str,
    eventgpt_model_path: str,
    max_samples: int | None,
    device: str,
    eventgpt_only: bool,
    show_samples: bool,
) -> int:
    """Time EventGPT's four stages, truly decoupled."""
    if check_model(eventgpt_model_path).kind != "folder":
        raise CheckpointError(eventgpt_model_path, found="no such folder", expected="an EventGPT checkpoint")
    console = Console(highlight=False, soft_wrap=True)
    if not eventgpt_only:
        print_line(console, "Video-LLaVA and LLaVA-1.5 are not measured: this version has no adapter for them.")
    return run_bench(
        console,
        eventgpt_model_path,
        dataset_dir,
        max_samples=max_samples,
        placement=(device, "auto", "auto"),
        show_answers=show_samples,
    )


def four_stages(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    return exit_code_of(_four_stages, arguments, "benchmark_inference_4stages.py")
