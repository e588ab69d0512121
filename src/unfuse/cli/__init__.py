"""The command line, with one module for each verb."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from unfuse.cli.ask import ask
from unfuse.cli.bench import bench
from unfuse.cli.compare import compare
from unfuse.cli.dataset import dataset
from unfuse.cli.doctor import doctor
from unfuse.cli.errors import exit_code_of
from unfuse.cli.export import export
from unfuse.cli.report import report
from unfuse.cli.run import run_verb
from unfuse.cli.serve import serve
from unfuse.cli.store import store
from unfuse.cli.verify import verify


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unfuse")
def cli() -> None:
    """Take a multimodal LLM's fused generate() apart: run, time and verify each stage alone."""


for _verb in (bench, ask, run_verb, serve, verify, compare, report, export, dataset, store, doctor):
    cli.add_command(_verb)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    return exit_code_of(cli, arguments, "unfuse")


def main() -> None:
    """Run the command of this process and end the process with its exit code."""
    sys.exit(run())
