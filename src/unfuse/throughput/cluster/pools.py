"""How many actors each stage has, and which part of the cluster each is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from unfuse.errors import InputError

POOLS: Final = ("load", "preprocess", "encode", "answer")
"""In the order in which a scene passes through them."""
ON_DEVICE: Final = ("encode", "answer")
_SIZE: Final = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class PoolSize:
    """Actors of one pool; Ray Data adds and takes away between the two as work comes."""

    least: int
    most: int

    def __str__(self) -> str:
        return str(self.least) if self.least == self.most else f"{self.least}-{self.most}"


@dataclass(frozen=True, slots=True)
class Share:
    """What one actor is given; parts of one are as good as any."""

    cpus: float
    gpus: float = 0.0


def parse_pools(text: str) -> dict[str, PoolSize]:
    """Understands ``load=4,preprocess=2-8,encode=1,answer=2``; a pool that is left out gets its default.

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
    """Every pool's size.

    A quarter of the devices encodes, the others answer; loading and preprocessing grow over the cores that are left.
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


def shares(sizes: Mapping[str, PoolSize], cpus: float, gpus: float, *, on_gpu: bool) -> dict[str, Share]:
    """What an actor of each pool is given, so that the smallest pools find room together.

    A whole core and a whole GPU where there are enough; else an equal part, so that each holds as many as the next.
    """
    cpu = _part(sum(size.least for size in sizes.values()), cpus)
    gpu = _part(sum(sizes[name].least for name in ON_DEVICE), gpus) if on_gpu else 0.0
    return {name: Share(cpu, gpu if name in ON_DEVICE else 0.0) for name in POOLS}


def _part(actors: int, there: float) -> float:
    """One, or one n-th so that ``actors`` of them fit in; one as well where there are none yet: a cluster may grow."""
    whole = int(there)
    if whole < 1 or actors <= whole:
        return 1.0
    # Rounded down, so that n of them are not more than one.
    return int(1000 / -(-actors // whole)) / 1000
