"""Layers of a CLIP-like vision transformer by the project's kernels.

CLIP (Radford et al., arXiv 2103.00020) and SigLIP (Zhai et al., arXiv 2303.15343) differ in sizes and activation. A
layer is recognised by its structure, not by its name; other layers keep their own forward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.cuda_graphs import split_graph, split_points
from unfuse.engines.graphed.kernels import tower
from unfuse.engines.graphed.kernels.tower import TowerConfig, activate, layer_norm, tower_attention
from unfuse.engines.graphed.llama import joined
from unfuse.engines.unsupported import Unsupported

_LAYER: Final = {"self_attn", "mlp", "layer_norm1", "layer_norm2"}
_ATTENTION: Final = {"q_proj", "k_proj", "v_proj", "out_proj"}
_MLP: Final = {"fc1", "fc2", "activation_fn"}
_ACTIVATIONS: Final = {
    "QuickGELUActivation": "quick_gelu",
    "GELUActivation": "gelu",
    "GELUTanh": "gelu_tanh",
}


@dataclass(frozen=True, slots=True)
class Affine:
    """``x W^T + b``."""

    weight: torch.Tensor
    """``[N, K]``"""
    bias: torch.Tensor
    """``[N]``"""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[R, K]`` to ``[R, N]``."""
        return torch.addmm(self.bias, x, self.weight.t())


@dataclass(frozen=True, slots=True)
class TowerLayer:
    """One layer: ``x + out(attention(norm(x)))``, then ``x + fc2(act(fc1(norm(x))))``."""

    module: nn.Module
    norms: tuple[nn.LayerNorm, nn.LayerNorm]
    qkv: Affine
    out: Affine
    up: Affine
    down: Affine
    heads: int
    scale: float
    activation: str

    @property
    def width(self) -> int:
        """C."""
        return self.out.weight.shape[0]

    def __call__(self, x: torch.Tensor, config: TowerConfig) -> torch.Tensor:
        """Map ``[F, P, C]`` to a new tensor of this shape."""
        flat = x.reshape(-1, self.width).contiguous()
        normed, residual = torch.empty_like(flat), torch.empty_like(flat)
        layer_norm(normed, residual, flat, *_norm(self.norms[0]), self.out.bias, self.norms[0].eps)
        attended = torch.empty_like(flat)
        tower_attention(attended, self.qkv(normed), len(x), self.heads, self.scale, config)
        torch.addmm(residual, attended, self.out.weight.t(), out=residual)
        layer_norm(normed, residual, residual, *_norm(self.norms[1]), self.down.bias, self.norms[1].eps)
        inner = self.up(normed)
        activate(inner, self.activation)
        torch.addmm(residual, inner, self.down.weight.t(), out=residual)
        return residual.view(x.shape)


class TowerLayers:
    """All supported layers of a module, and the attention config of each number of images."""

    def __init__(self, module: nn.Module, tuner: Autotuner):
        """Stack the query, key and value weights of each layer in place."""
        self._tuner = tuner
        self._layers = [layer for each in module.modules() if (layer := _tower_layer(each)) is not None]
        self._configs: dict[tuple[int, int], TowerConfig] = {}

    def __bool__(self) -> bool:
        return bool(self._layers)

    @contextmanager
    def own_kernels(self) -> Iterator[None]:
        """Replace the layers' forwards while the body runs."""
        splits = split_points(len(self._layers))
        for index, layer in enumerate(self._layers):
            layer.module.forward = self._forward(layer, split_before=index in splits)
        try:
            yield
        finally:
            for layer in self._layers:
                del layer.module.forward

    def _config(self, images: int, positions: int) -> TowerConfig:
        """Return the attention config of so many images; timed at the first call."""
        if (images, positions) in self._configs:
            return self._configs[images, positions]
        first = self._layers[0]
        weight, heads = first.qkv.weight, first.heads
        qkv = torch.zeros(images * positions, len(weight), dtype=weight.dtype, device=weight.device)
        out = qkv.new_zeros(len(qkv), first.width)

        def run(config: TowerConfig) -> None:
            for layer in self._layers:
                tower_attention(out, qkv, images, heads, layer.scale, config)

        key = f"{len(self._layers)} tower layers {images} x {positions} of {heads} x {first.width // heads}"
        configs = (tower.FLOAT32_CONFIG,) if weight.dtype == torch.float32 else tower.CANDIDATES
        config = self._tuner.choose(f"{key} {weight.dtype}", configs, run)
        self._configs[images, positions] = config
        return config

    def _forward(self, layer: TowerLayer, *, split_before: bool) -> Any:
        def forward(hidden_states: torch.Tensor, attention_mask: Any = None, **kwargs: Any) -> torch.Tensor:
            if attention_mask is not None or kwargs.get("output_attentions"):
                raise Unsupported("a tower's layer got a mask, or must return its attention")
            if split_before:
                split_graph()
            return layer(hidden_states, self._config(*hidden_states.shape[:2]))

        return forward


def _tower_layer(module: Any) -> TowerLayer | None:
    """Return the layer; None if its structure is not supported."""
    if {name for name, _ in module.named_children()} != _LAYER:
        return None
    attention, mlp, norms = module.self_attn, module.mlp, (module.layer_norm1, module.layer_norm2)
    activation = _ACTIVATIONS.get(type(getattr(mlp, "activation_fn", None)).__name__)
    if (
        {name for name, _ in attention.named_children()} != _ATTENTION
        or {name for name, _ in mlp.named_children()} != _MLP
        or activation is None
        or any(type(norm) is not nn.LayerNorm or norm.bias is None for norm in norms)
        or "forward" in vars(module)
    ):
        return None
    try:
        layer = TowerLayer(
            module=module,
            norms=norms,
            qkv=_affine(attention.q_proj, attention.k_proj, attention.v_proj),
            out=_affine(attention.out_proj),
            up=_affine(mlp.fc1),
            down=_affine(mlp.fc2),
            heads=int(attention.num_heads),
            scale=float(attention.scale),
            activation=activation,
        )
    except Unsupported:
        return None
    whole = len(layer.qkv.weight) == 3 * layer.width and layer.width % layer.heads == 0
    return layer if whole else None


def _norm(norm: nn.LayerNorm) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.weight.detach(), norm.bias.detach()


def _affine(*linears: Any) -> Affine:
    found = joined(linears)
    if found.bias is None:
        raise Unsupported("a projection without a bias")
    return Affine(found.weight, found.bias)
