"""Kernel configs of a pass over a few rows, each timed within the whole pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from typing import Final, Generic, TypeVar

import torch

from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.gemm import Gemm, GemmConfig, Scratch
from unfuse.engines.graphed.kernels import extend_attention
from unfuse.engines.graphed.kernels.attention_common import Heads
from unfuse.engines.graphed.kernels.decode_attention import DecodeConfig
from unfuse.engines.graphed.kernels.extend_attention import ExtendConfig

TYPICAL_LENGTH: Final = 703
"""Cached positions while configs are timed."""
_PROGRAMS: Final = 264
"""Thread blocks of an attention kernel, at least: two for each SM of the largest GPUs."""
_MOST_SPLITS: Final = 16

Config = TypeVar("Config", DecodeConfig, ExtendConfig)


@dataclass(slots=True)
class TunedConfigs(Generic[Config]):
    """The configs of a pass, as chosen so far."""

    attention_configs: Sequence[Config]
    """Candidates for attention; the first one always works."""
    candidates: dict[str, list[GemmConfig]]
    """Candidates for each product; the first one always works."""
    attention: Config
    gemms: dict[str, GemmConfig]

    @classmethod
    def for_rows(
        cls, rows: int, attention_configs: Sequence[Config], gemms: Sequence[Gemm], scratch: Scratch
    ) -> TunedConfigs[Config]:
        """Start from the configs that are often the fastest.

        Args:
            rows: padded number of rows.
            attention_configs: candidates for attention.
            gemms: the products, largest first, since the others are timed beside it.
            scratch: scratch memory of the products.
        """
        candidates = {gemm.name: gemm.candidates(scratch, rows) for gemm in gemms}
        chosen = {name: each[min(1, len(each) - 1)] for name, each in candidates.items()}
        return TunedConfigs(attention_configs, candidates, attention_configs[0], chosen)

    def choose(self, tuner: Autotuner, key: Callable[[str], str], run: Callable[[], None]) -> None:
        """Choose the fastest config of each kernel, one kernel after the other.

        Args:
            tuner: times candidates and stores the results.
            key: returns the name of a product, or of ``attention``, in the tuning file.
            run: launches the whole pass with the configs chosen so far.
        """

        def multiply(name: str) -> Callable[[GemmConfig], None]:
            def with_config(config: GemmConfig) -> None:
                self.gemms[name] = config
                run()

            return with_config

        def attend(config: Config) -> None:
            self.attention = config
            run()

        for name, configs in self.candidates.items():
            self.gemms[name] = tuner.choose(key(name), configs, multiply(name))
        self.attention = tuner.choose(key("attention"), self.attention_configs, attend)


def decode_configs(heads: Heads, rows: int, dtype: torch.dtype) -> list[DecodeConfig]:
    """Return candidates for attention in a decode step of so many sequences."""
    wanted = -(-_PROGRAMS // (rows * heads.num_kv_heads))
    splits = min(_MOST_SPLITS, 1 << (wanted - 1).bit_length())
    if dtype == torch.float32:
        # See ``extend_attention``.
        return [DecodeConfig(splits, 32, 4, 3)]
    usual = DecodeConfig(splits, 64, 4, 3)
    if rows > 1:
        return [usual]
    fewer = max(1, splits // 2)
    return [
        usual,
        DecodeConfig(splits, 32, 4, 3),
        DecodeConfig(fewer, 64, 4, 3),
        DecodeConfig(fewer, 32, 4, 4),
        DecodeConfig(2 * splits, 64, 2, 2),
        # One block of positions for each thread block, loaded before the wait for the previous kernel.
        DecodeConfig(-(-TYPICAL_LENGTH // 64), 64, 4, 1),
        DecodeConfig(-(-TYPICAL_LENGTH // 64) + 1, 64, 2, 1),
    ]


def extend_configs(heads: Heads, rows: int, scratch: Scratch) -> list[ExtendConfig]:
    """Return candidates for attention of an extend pass."""
    most = scratch.partial.numel()
    float32 = scratch.normed.dtype == torch.float32
    configs = (extend_attention.FLOAT32_CONFIG,) if float32 else extend_attention.CANDIDATES
    return [config for config in configs if extend_attention.partial_size(heads, rows, config.splits, 1) <= most]


def tuning_key(layers: int, heads: Heads, kind: str, rows: int, gemms: Sequence[Gemm]) -> Callable[[str], str]:
    """Return a function from a kernel's name to its name in the tuning file; equal problems get equal names.

    Args:
        layers: number of layers.
        heads: sizes of the heads.
        kind: ``decode`` or ``extend``.
        rows: padded number of rows.
        gemms: the products of a layer.
    """
    names = {gemm.name: gemm.key(rows) for gemm in gemms}
    dtype = gemms[0].linears[0].weight.dtype
    names["attention"] = f"attention {astuple(heads)} {dtype} {rows} rows"
    return lambda name: f"{layers} layers {kind} {names[name]}"
