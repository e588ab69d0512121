"""The way to a cluster: one of this machine's own for the time of a run, or one that runs already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from unfuse.errors import DeviceError, MissingPackageError
from unfuse.extras import install_command
from unfuse.throughput.cluster.settings import LOCAL

_STORE_BYTES: Final = (256 << 20, 8 << 30)
"""Of a local cluster's object store, where scenes wait between two stages: at least and at most."""
_REACHED_S: Final = 10.0
_STORE_PART: Final = 0.1
"""Of the memory that is free."""


def require_ray() -> Any:
    """The package, imported.

    Raises:
        MissingPackageError: it is not installed.
    """
    # It is read when the package is imported, here and in every process that is started from here.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # What its processes note of themselves stays in their files; what ends a run is raised.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    # Actors of a cluster of our own are what the machine is there for; by default Ray has them give way to all else.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # Nothing of a device is hidden from an actor that asked for none; ours say themselves where they compute.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError)
        raise MissingPackageError(
            "--ray", found=f"no package {error.name}" if missing else f"a Ray that does not load here ({error})",
            expected="it, for a run on a cluster",
            fix=f"run: {install_command('unfuse[ray]')}",
        ) from None  # fmt: skip
    return ray


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster; where this process is connected already, that connection.

    Args:
        address: ``local``, ``auto`` for the one that this machine belongs to, or ``HOST:PORT``.

    Raises:
        MissingPackageError: Ray is not installed.
        DeviceError: no cluster there, or none can be started here.
    """
    with _handlers_kept():
        ray = require_ray()
        own = not ray.is_initialized()
        if own:
            _connect(ray, address)
    try:
        with _quiet():
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
            socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHED_S).close()
        with _unsaid():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError, TimeoutError) as error:
        with suppress(Exception):
            ray.shutdown()
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if address == LOCAL:
            raise DeviceError("ray", found=f"no cluster can be started here ({reason})", expected="one") from None
        raise DeviceError(
            f"ray {address}", found=f"no cluster ({reason})", expected="one that runs",
            fix="start it with ray start --head; if it wants a token, set RAY_AUTH_MODE=token",
        ) from None  # fmt: skip


@contextmanager
def _unsaid() -> Iterator[None]:
    """Whatever is written to the standard error, by other languages' libraries too, is not."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _store_bytes() -> int:
    """Scenes flow; few wait. Ray's own choice would be a third of the machine."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        shared = os.statvfs("/dev/shm")
        free = min(free, shared.f_bavail * shared.f_frsize * 5)
    except (OSError, ValueError):
        free = 0
    least, most = _STORE_BYTES
    return max(least, min(most, int(free * _STORE_PART)))


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Connecting puts another SIGTERM handler in place of whatever was there."""
    try:
        before = signal.getsignal(signal.SIGTERM)
        yield
    finally:
        with suppress(ValueError):  # not in the main thread: Ray then leaves it alone as well
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _quiet() -> Iterator[None]:
    """Ray Data's log stays in its file: what concerns a run, the run says itself."""
    logger = logging.getLogger("ray.data")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
