"""Bind a socket, serve on it, and shut down in order."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import closing
from types import FrameType
from typing import Final

import uvicorn

from unfuse.errors import InputError
from unfuse.feature_store import FeatureStore
from unfuse.serving.app import build_app
from unfuse.serving.listener import timed_protocol
from unfuse.serving.service import Service
from unfuse.serving.settings import ServeSettings
from unfuse.staged_model import StagedModel

_MAX_CONNECTIONS: Final = 1024
_BACKLOG: Final = 512
_INTERRUPTED_S: Final = 2
"""Time that a Ctrl-C leaves to unfinished answers."""


class _Server(uvicorn.Server):
    """A server that SIGTERM lets finish its answers, and Ctrl-C does not for long."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT:
            self.config.timeout_graceful_shutdown = _INTERRUPTED_S
        super().handle_exit(sig, frame)


def bind(settings: ServeSettings) -> socket.socket:
    """Bind the address before the model is loaded.

    Raises:
        InputError: the address is in use, or not this machine's.
    """
    host = settings.host.strip("[]")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise InputError(
            f"{settings.host}:{settings.port}",
            found=error.strerror or type(error).__name__,
            expected="an address of this machine that is free",
            fix="give another --port, or 0 for any",
        ) from None
    return bound


def url_of(listening: socket.socket) -> str:
    """Return the URL for a browser on this machine."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # a wildcard address has no URL
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    listening: socket.socket,
    model: StagedModel,
    settings: ServeSettings,
    *,
    store: FeatureStore | None = None,
    started: Callable[[uvicorn.Server, Service], None] = lambda server, service: None,
) -> None:
    """Serve until SIGINT or SIGTERM; unfinished answers may finish first, for ``timeout_s`` or after SIGINT for 2 s.

    Args:
        listening: socket from ``bind``.
        model: closed at the end.
        settings: limits.
        store: features that outlive the process.
        started: called with server and service before they run.
    """
    with closing(Service(model, settings, store)) as service:
        config = uvicorn.Config(
            build_app(service),
            http=timed_protocol(settings.opening_s),
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
        server = _Server(config)

        def failed() -> None:
            server.should_exit = True

        service.engine.on_failure = failed
        started(server, service)
        with closing(listening):
            asyncio.run(server.serve(sockets=[listening]))
        if service.engine.failure is not None:
            raise service.engine.failure
