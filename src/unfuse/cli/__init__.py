"""The command line: one verb a module, each a thin skin over the package.

Errors are one line on stderr. Exit codes: 0 done; 1 a check or verdict failed; 2 usage or bad input.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from unfuse.cli.ask import ask
from unfuse.cli.bench import bench
from unfuse.cli.doctor import doctor
from unfuse.cli.verify import verify
from unfuse.errors import UnfuseError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="unfuse")
def cli() -> None:
    """Take a multimodal LLM's fused generate() apart: run, time and verify each stage alone."""


for _verb in (bench, ask, verify, doctor):
    cli.add_command(_verb)


def run(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit code."""
    try:
        code = cli.main(args=arguments, prog_name="unfuse", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.format_message())
        return 2
    except click.ClickException as error:
        click.echo(f"error: {' '.join(error.format_message().split())}", err=True)
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        return 130
    except UnfuseError as error:
        click.echo(f"error: {error}", err=True)
        return error.exit_code
    return code if isinstance(code, int) else 0


def main() -> None:
    """Entry point of the ``unfuse`` command."""
    sys.exit(run())
