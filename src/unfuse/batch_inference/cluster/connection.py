"""Connection to a Ray cluster: a local one for the time of a run, or one that runs already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from unfuse.batch_inference.cluster.settings import LOCAL
from unfuse.errors import DeviceError, MissingPackageError
from unfuse.extras import install_command

_STORE_BYTES: Final = (256 << 20, 8 << 30)
"""Smallest and largest object store of a local cluster; scenes wait in it between two stages."""
_CONNECT_S: Final = 10.0
_STORE_PART: Final = 0.1
"""Fraction of the free memory."""


def require_ray() -> Any:
    """Import and return Ray.

    Raises:
        MissingPackageError: it is not installed.
    """
    # Ray reads it on import, in this process and in every process that it starts.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Logs of Ray's processes stay in their files; an error that ends a run is raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # By default Ray gives actors of a local cluster a low priority.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Ray must not hide GPUs from an actor that requests none; our actors choose their device.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise MissingPackageError(
            "--ray", found=f"no package {error.name}" if missing else f"a Ray that does not load here ({error})",
            expected="this package, for a run on a cluster",
            fix=f"run: {install_command('unfuse[ray]')}",
        ) from None  # fmt: skip
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Yield Ray, connected to a cluster; an existing connection of this process is used.

    Args:
        address: ``local``, ``auto`` for this machine's cluster, or ``HOST:PORT``.

    Raises:
        MissingPackageError: Ray is not installed.
        DeviceError: no cluster at the address, or a local one does not start.
    """
    with _keep_signal_handler():
        ray = require_ray()
        own = not ray.is_initialized()
        if own:
            _connect(ray, address)
    try:
        with _suppress_log():
            yield ray
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    local: dict[str, Any] = {}
    if address == LOCAL:
        local = {"include_dashboard": False, "object_store_memory": _store_bytes()}
    try:
        if address not in (LOCAL, "auto"):
            # Ray itself would wait for minutes.
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S).close()
        with _suppress_stderr():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        with suppress(Exception):
            ray.shutdown()
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if address == LOCAL:
            raise DeviceError(
                "ray", found=f"no cluster can be started here ({reason})", expected="a local cluster"
            ) from None
        raise DeviceError(
            f"ray {address}", found=f"no cluster ({reason})", expected="a running cluster",
            fix="start it with ray start --head; if it wants a token, set RAY_AUTH_MODE=token",
        ) from None  # fmt: skip


@contextmanager
def _suppress_stderr() -> Iterator[None]:
    """Discard standard error, that of native libraries included."""
    sys.stderr.flush()
    stderr = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)


def _store_bytes() -> int:
    """Return the size of a local object store. Few scenes wait in it, and Ray's default is 30 % of the memory."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        shared = os.statvfs("/dev/shm")
        free = min(free, shared.f_bavail * shared.f_frsize * 5)
    except (OSError, ValueError):
        free = 0
    smallest, largest = _STORE_BYTES
    return max(smallest, min(largest, int(free * _STORE_PART)))


@contextmanager
def _keep_signal_handler() -> Iterator[None]:
    """Restore the SIGTERM handler after the body: Ray replaces it while it connects."""
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
    finally:
        with suppress(ValueError):  # outside the main thread; Ray does not replace the handler there either
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _suppress_log() -> Iterator[None]:
    """Keep Ray Data's log out of the terminal; it stays in its file."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
