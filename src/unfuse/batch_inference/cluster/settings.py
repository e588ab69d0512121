"""Address of a cluster and sizes of its actor pools, checked before Ray is imported."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from unfuse.batch_inference.cluster.pools import PoolSize, parse_pools
from unfuse.errors import InputError

LOCAL: Final = "local"
"""Stands for a cluster of this machine alone that ends with the run."""
_ADDRESS: Final = re.compile(r"local|auto|[\w.-]+:\d+|\[[\da-fA-F:]+\]:\d+")


@dataclass(frozen=True, kw_only=True, slots=True)
class RaySettings:
    """Cluster and actor pools."""

    address: str = LOCAL
    """As for ``connected``."""
    pools: Mapping[str, PoolSize] = field(default_factory=dict)
    """Pools without their default size."""


def check_address(address: str) -> None:
    """Check the form of a cluster's address.

    Raises:
        InputError: it has another form.
    """
    if address.startswith("ray://"):
        raise InputError(
            "ray", found=f"address {address!r}", expected="none, local, auto or HOST:PORT",
            fix="Ray Data does not run through Ray Client: start it on a machine of the cluster, or by ray job submit",
        )  # fmt: skip
    if not _ADDRESS.fullmatch(address):
        raise InputError(
            "ray", found=f"address {address!r}", expected="none, local, auto or HOST:PORT",
            fix="give MODEL before --ray",
        )  # fmt: skip


def ray_settings(address: str | None, pools: str | None, others: Mapping[str, object]) -> RaySettings | None:
    """Return the settings of a user's options; None without an address.

    Args:
        address: as for ``connected``.
        pools: as for ``parse_pools``.
        others: options without a meaning on a cluster, by name; None if not given.

    Raises:
        InputError: malformed address or sizes, or options that exclude each other.
    """
    if address is None:
        if pools is not None:
            raise InputError("ray-pools", found="no ray", expected="ray, for a run on a cluster")
        return None
    check_address(address)
    for name, value in others.items():
        if value is not None:
            raise InputError(name, found="ray beside it", expected="one of the two")
    return RaySettings(address=address, pools={} if pools is None else parse_pools(pools))
