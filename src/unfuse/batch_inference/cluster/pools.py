"""Sizes of the actor pools, and the resources of an actor in each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from unfuse.errors import InputError

POOLS: Final = ("load", "preprocess", "encode", "answer")
"""Names in the order of the stages."""
ON_DEVICE: Final = ("encode", "answer")
_SIZE: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class PoolSize:
    """Smallest and largest number of actors in a pool; Ray Data scales between the two."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, slots=True)
class ActorResources:
    """CPUs and GPUs of one actor; both may be fractions."""

    cpus: float
    gpus: float = 0.0


def parse_pools(text: str) -> dict[str, PoolSize]:
    """Parse ``load=4,preprocess=2-8,encode=1,answer=2``; an omitted pool gets its default size.

    Raises:
        InputError: a pool that does not exist or is named twice, or a size that is none.
    """
    found: dict[str, PoolSize] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        match = _SIZE.fullmatch(size)
        if name not in POOLS or match is None or name in found:
            raise InputError(
                "ray-pools",
                found=repr(part.strip()),
                expected=f"{', '.join(POOLS)}, each once, as in load=4,encode=1-2",
            )
        least = int(match[1])
        found[name] = PoolSize(least, int(match[2] or least))
        if not 1 <= least <= found[name].most:
            raise InputError(f"ray-pools: {name}", found=size, expected="at least 1, and the smaller number first")
    return found


def pool_sizes(given: Mapping[str, PoolSize], cpus: float, gpus: float, *, on_gpu: bool) -> dict[str, PoolSize]:
    """Return the size of every pool.

    A quarter of the devices encodes, the others answer; loading and preprocessing scale over the remaining cores.
    """
    devices = max(1, int(gpus)) if on_gpu else max(1, int(cpus) // 4)
    encode = max(1, devices // 4)
    workers = max(1, int(cpus - (devices if on_gpu else 2 * devices)) // 2)
    defaults = {
        "load": PoolSize(1, workers),
        "preprocess": PoolSize(1, workers),
        "encode": PoolSize(encode, encode),
        "answer": PoolSize(max(1, devices - encode), max(1, devices - encode)),
    }
    return {name: given.get(name, defaults[name]) for name in POOLS}


def actor_resources(
    sizes: Mapping[str, PoolSize], cpus: float, gpus: float, *, on_gpu: bool
) -> dict[str, ActorResources]:
    """Return the resources of an actor in each pool, so that pools of the smallest size fit the cluster together.

    An actor gets a whole core and a whole GPU if there are enough, and otherwise an equal fraction.
    """
    cpu = _part(sum(size.least for size in sizes.values()), cpus)
    gpu = _part(sum(sizes[name].least for name in ON_DEVICE), gpus) if on_gpu else 0.0
    return {name: ActorResources(cpu, gpu if name in ON_DEVICE else 0.0) for name in POOLS}


def _part(actors: int, available: float) -> float:
    """Return 1, or 1/n so that ``actors`` fit; also 1 for an empty cluster, because a cluster may grow."""
    whole = int(available)
    if whole < 1 or actors <= whole:
        return 1.0
    # Rounded down, so that n of them do not exceed 1.
    return int(1000 / -(-actors // whole)) / 1000
