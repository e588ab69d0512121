"""``unfuse serve``: an OpenAI-compatible endpoint for scenes."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from unfuse.cli.options import open_store, placement_options, store_options
from unfuse.errors import CutError, MissingPackageError
from unfuse.extras import install_command
from unfuse.loading import DEMO, Placement, check_model
from unfuse.report import print_line

_MIB = 1 << 20


@click.command(short_help="Serve a model over HTTP, with a page to try it.")
@click.argument("model", default=DEMO)
@placement_options
@store_options
@click.option("--host", default="127.0.0.1", help="Address to listen on; addresses other than loopback need a token.")
@click.option("--port", type=int, default=8000, help="0 chooses a free port.")
@click.option("--token-file", type=click.Path(path_type=Path), help="File with the token that clients must send.")
@click.option("--no-token", is_flag=True, help="Accept requests without a token.")
@click.option("--max-upload-mb", type=int, default=256, help="Maximum size of an upload.")
@click.option(
    "--scenes-mb", type=int, default=1024, help="Memory for scenes; the least recently used scene is dropped first."
)
@click.option("--timeout-s", type=float, default=120.0, help="Time limit of a request.")
@click.option(
    "--max-concurrent", type=int, default=None, help="Answers that are decoded together; default: the engine's choice."
)
@click.option("--queue", type=int, default=64, help="Answers that may wait; further requests get status 429.")
def serve(
    model: str,
    placement: Placement,
    store: Path | None,
    store_gib: float | None,
    host: str,
    port: int,
    token_file: Path | None,
    no_token: bool,
    max_upload_mb: int,
    scenes_mb: int,
    timeout_s: float,
    max_concurrent: int | None,
    queue: int,
) -> int:
    """Serve MODEL (default: demo) with OpenAI's chat API and a page to try it.

    Recordings, videos and pictures are uploaded to /v1/files, encoded once, and asked about through
    /v1/chat/completions. Only this machine can reach the server, unless you set --host.
    """
    check_model(model)
    _require_packages()

    from unfuse.api.defaults import default_tokens
    from unfuse.serving.settings import ServeSettings, read_token

    settings = ServeSettings(
        host=host,
        port=port,
        token=None if no_token else read_token(token_file),
        open_to_all=no_token,
        max_upload_bytes=max_upload_mb * _MIB,
        scene_bytes=scenes_mb * _MIB,
        timeout_s=timeout_s,
        max_concurrent=max_concurrent,
        queue=queue,
        max_new_tokens=default_tokens(model),
    )

    from unfuse.serving.server import bind, url_of
    from unfuse.serving.server import serve as run

    console = Console(highlight=False, soft_wrap=True)
    scenes = open_store(store, store_gib)
    with bind(settings) as listening:
        loaded = placement.load(model)
        if (unsplittable := loaded.adapter.unsplittable) is not None:
            raise CutError(f"model {model}", found=unsplittable.reason, expected="stages that can be split")
        print_line(
            console,
            f"{model} on {loaded.device}, {str(loaded.dtype).removeprefix('torch.')}, engine {loaded.engine.name}",
        )
        for note in loaded.notes:
            print_line(console, f"Note: {note}")
        token = "a token is needed" if settings.token else "no token is needed"
        print_line(console, f"Serving at {url_of(listening)} (page), /v1 (OpenAI's API) and /metrics; {token}.")
        run(listening, loaded, settings, store=scenes)
    return 0


def _require_packages() -> None:
    for package in ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sse_starlette"):
        try:
            __import__(package)
        except ImportError:
            raise MissingPackageError(
                "unfuse serve",
                found=f"no package {package.replace('_', '-')}",
                expected="the package",
                fix=f"run: {install_command('unfuse[serve]')}",
            ) from None
