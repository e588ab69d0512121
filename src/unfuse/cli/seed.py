"""The seed's commands with the seed's arguments and default paths, over the same benchmark and checks.

EventGPT runs from ``--eventgpt_model_path`` and from nowhere else: a missing checkpoint is an error, never the demo.
Each other model runs if its checkpoint is found; otherwise one line reports the missing checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click
from rich.console import Console

from unfuse.cli.bench import default_folder, show_bench
from unfuse.cli.errors import exit_code_of
from unfuse.cli.verify import show_verify
from unfuse.errors import CheckpointError
from unfuse.loading import Placement, check_model
from unfuse.report import print_line

_DATASET: Final = "./data/my_egpt_dsec_test/my_egpt_dsec_seq_1s"
_EVENTGPT: Final = "./checkpoints/EventGPT-7b"
_OTHERS: Final = {
    "Video-LLaVA": ("./checkpoints/Video-LLaVA-7B-hf", "LanguageBind/Video-LLaVA-7B-hf"),
    "LLaVA-1.5": ("./checkpoints/llava-1.5-7b-hf", "llava-hf/llava-1.5-7b-hf"),
}
"""Folder looked into, and the hub's name of the checkpoint that belongs there."""

_F = TypeVar("_F", bound=Callable[..., Any])


def _seed_options(function: _F) -> _F:
    for option in (
        click.option("--show_samples", is_flag=True, help="Print every sample's answer as well."),
        click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N."),
        click.option("--max_samples", type=int, default=None, help="Only the first N samples."),
        click.option("--eventgpt_model_path", default=_EVENTGPT, show_default=True, help="EventGPT checkpoint folder."),
        click.option(
            "--dataset_dir", default=_DATASET, show_default=True, help="Folder in the instruction-set layout."
        ),
    ):
        function = option(function)
    return function


def _command(function: _F) -> click.Command:
    return click.command(context_settings={"help_option_names": ["-h", "--help"]})(function)


@_command
@_seed_options
@click.option("--eventgpt_only", is_flag=True, help="Leave the other models out.")
def _four_stages(eventgpt_only: bool, **given: Any) -> int:
    """Time the four stages, truly decoupled; EventGPT first, then the other models that are found."""
    console = Console(highlight=False, soft_wrap=True)
    models = _models(console, given["eventgpt_model_path"], others=not eventgpt_only)
    return _bench(console, models, "decoupled", given)


@_command
@_seed_options
def _three_stages(**given: Any) -> int:
    """Time EventGPT's three stages: load, preprocess, and generate in one piece."""
    console = Console(highlight=False, soft_wrap=True)
    models = _models(console, given["eventgpt_model_path"], others=False)
    return _bench(console, models, "fused", given)


@_command
@_seed_options
@click.option("--protocol", default="all", help="decoupled, fused, hooked, reencode (a control) or all.")
@click.option("--output_length", type=int, default=None, help="New tokens of every answer.")
def _proper_decoupling(protocol: str, output_length: int | None, **given: Any) -> int:
    """Measure every model that is found on the same samples, and write one comparison."""
    console = Console(highlight=False, soft_wrap=True)
    models = _models(console, given["eventgpt_model_path"], others=True)
    return _bench(console, models, protocol, given, output_length=output_length)


@_command
@click.option(
    "--model_name", default="LanguageBind/Video-LLaVA-7B-hf", show_default=True, help="Checkpoint folder or hub name."
)
@click.option("--device", default="auto", help="auto, cpu, cuda or cuda:N.")
@click.option("--dataset_dir", default=None, help="Check on this dataset's first sample; default: the demo's.")
def _verify_videollava(model_name: str, device: str, dataset_dir: str | None) -> int:
    """Prove that a model's stages, decoupled and hooked, are the parts of its own generate."""
    console = Console(highlight=False, soft_wrap=True)
    return show_verify(console, model_name, dataset=dataset_dir, placement=Placement(device))


def _models(console: Console, eventgpt: str, *, others: bool) -> tuple[str, ...]:
    if check_model(eventgpt).kind != "folder":
        raise CheckpointError(eventgpt, found="no such folder", expected="an EventGPT checkpoint")
    found = [eventgpt]
    for title, (folder, hub) in _OTHERS.items() if others else ():
        if Path(folder).is_dir():
            found.append(folder)
        else:
            print_line(console, f"{title} is not measured: no checkpoint at {folder} (it is {hub} on the hub).")
    return tuple(found)


def _bench(
    console: Console, models: tuple[str, ...], protocol: str, given: dict[str, Any], *, output_length: int | None = None
) -> int:
    return show_bench(
        console,
        models,
        dataset=given["dataset_dir"],
        max_samples=given["max_samples"],
        placement=Placement(given["device"]),
        protocol=protocol,
        output=default_folder(models),
        settings={"output_length": output_length},
        show_answers=given["show_samples"],
    )


def four_stages(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code_of(_four_stages, arguments, "benchmark_inference_4stages.py")


def three_stages(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code_of(_three_stages, arguments, "benchmark_inference_3stages.py")


def proper_decoupling(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code_of(_proper_decoupling, arguments, "benchmark_with_proper_decoupling.py")


def verify_videollava(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return exit_code_of(_verify_videollava, arguments, "verify_videollava_decoupling.py")
