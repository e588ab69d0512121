"""``unfuse export``: write the samples of runs as one table, for pandas, DuckDB, R or a spreadsheet."""

from __future__ import annotations

from pathlib import Path

import click

from unfuse.errors import InputError
from unfuse.records.export import check_export
from unfuse.records.export import export as write
from unfuse.records.table import sample_table


@click.command(short_help="Write the samples of runs as one table.")
@click.argument("runs", nargs=-1, metavar="RUN [RUN ...]", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), default=None, help="samples.csv or samples.parquet.")
@click.option("--replace", is_flag=True, help="Overwrite an existing file.")
def export(runs: tuple[Path, ...], output: Path | None, replace: bool) -> int:
    """Write every sample of RUN (a run folder, or that of a comparison) into one table."""
    if not runs:
        raise InputError(
            "export", found="no run", expected="at least one", fix="run: unfuse export RUN --output samples.csv"
        )
    if output is None:
        raise InputError("export", found="no --output", expected="--output samples.csv or samples.parquet")
    check_export(output, replace=replace)
    table = sample_table(runs)
    write(table, output)
    count, columns = len(table.rows), len(table.columns)
    click.echo(f"{output}: {count} rows of {table.num_runs} runs, {columns} columns; warm-ups have warmup = true.")
    return 0
