"""Binds, loads, serves, and ends in good order."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing
from typing import Final

import uvicorn

from unfuse.errors import InputError
from unfuse.feature_store import FeatureStore
from unfuse.serving.app import build_app
from unfuse.serving.listener import timed
from unfuse.serving.service import Service
from unfuse.serving.settings import ServeSettings
from unfuse.staged_model import StagedModel

_MAX_CONNECTIONS: Final = 1024
_BACKLOG: Final = 512


def bind(settings: ServeSettings) -> socket.socket:
    """Takes the address before anything slow happens.

    Raises:
        InputError: it is taken, or none of this machine's.
    """
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        try:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
        except OSError:
            taken.close()
            raise
    except OSError as error:
        raise InputError(
            f"{settings.host}:{settings.port}",
            found=error.strerror or type(error).__name__,
            expected="an address of this machine that is free",
            fix="give another --port, or 0 for any",
        ) from None
    return taken


def url_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds it."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # every address, of which one is shown
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    listening: socket.socket,
    model: StagedModel,
    settings: ServeSettings,
    *,
    store: FeatureStore | None = None,
    started: Callable[[uvicorn.Server, Service], None] = lambda server, service: None,
) -> None:
    """Serves until it is told to end (SIGINT, SIGTERM), letting answers under way finish first.

    Args:
        listening: from ``bind``.
        model: closed at the end.
        settings: limits.
        store: of features that outlive the process.
        started: given both before they run.
    """
    with closing(Service(model, settings, store)) as service:
        config = uvicorn.Config(
            build_app(service),
            http=timed(settings.opening_s),
            ws="none",
            loop="asyncio",
            lifespan="on",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
            backlog=_BACKLOG,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=max(int(settings.timeout_s), 1),
        )
        server = uvicorn.Server(config)

        def failed() -> None:
            server.should_exit = True

        service.engine.on_failure = failed
        started(server, service)
        with closing(listening):
            asyncio.run(server.serve(sockets=[listening]))
        if service.engine.failure is not None:
            raise service.engine.failure
