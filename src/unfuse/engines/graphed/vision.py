"""Stage 3 as CUDA graphs: one for each vision module and each shape of its inputs."""

from __future__ import annotations

import functools
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from unfuse.engines.graphed.autotune import Autotuner
from unfuse.engines.graphed.cuda_graphs import GraphedCall
from unfuse.engines.graphed.tower_layers import TowerLayers
from unfuse.engines.unsupported import Unsupported

_MAX_GRAPHS: Final = 8
"""Graphs per module; the least recently used one is freed first."""
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest relative L2 distance from the output of the module's own forward."""
_PLAIN: Final = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True, slots=True)
class _Call:
    """A captured call, with the tensors that it reads and writes."""

    inputs: list[torch.Tensor]
    run: GraphedCall
    output: list[Any]
    """The output, as the only element."""


class CapturedVision:
    """Runs vision modules as graphs. Their own hooks run as usual; hooks of modules inside them do not."""

    def __init__(self, modules: Mapping[str, nn.Module], tuner: Autotuner, pool: Any):
        self._modules = modules
        self._layers = {name: TowerLayers(module, tuner) for name, module in modules.items()}
        self._calls: dict[str, OrderedDict[Hashable, _Call | None]] = {name: OrderedDict() for name in modules}
        self._pool = pool
        self.notes: dict[str, None] = {}
        """Modules that run their own forward, each with the reason."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """Replace the modules' forwards by their graphs while the body runs."""
        replaced = [name for name, module in self._modules.items() if "forward" not in vars(module)]
        for name in replaced:
            self._modules[name].forward = functools.partial(self._forward, name)
        try:
            yield
        finally:
            for name in replaced:
                del self._modules[name].forward

    def close(self) -> None:
        """Free the graphs."""
        for calls in self._calls.values():
            calls.clear()

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Return the module's output, in new memory."""
        module, calls = self._modules[name], self._calls[name]
        own: Callable[..., Any] = functools.partial(type(module).forward, module)
        key = _key(args, kwargs, next(module.parameters()).device)
        if key is None:
            self._note(name, "its arguments are not only tensors on its device and plain values")
            return own(*args, **kwargs)
        if key not in calls:
            calls[key] = self._captured(name, own, args, kwargs)
            if len(calls) > _MAX_GRAPHS:
                calls.popitem(last=False)
        calls.move_to_end(key)
        call = calls[key]
        if call is None:
            return own(*args, **kwargs)
        for target, tensor in zip(call.inputs, _tensors(args, kwargs), strict=True):
            target.copy_(tensor)
        call.run()
        return pytree.tree_map_only(torch.Tensor, torch.clone, call.output[0])

    def _captured(
        self, name: str, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Call | None:
        """Capture a call; if it cannot be captured, note the reason and return None."""
        device = next(self._modules[name].parameters()).device
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        inputs = _tensors(args, kwargs)
        output: list[Any] = []

        def work(layers: TowerLayers | None) -> None:
            with layers.own_kernels() if layers else nullcontext():
                output[:] = [own(*args, **kwargs)]

        try:
            with _no_synchronisation():
                theirs = own(*args, **kwargs)
        except RuntimeError as error:
            self._note(name, error)
            return None
        layers = self._layers[name]
        for kernels in [layers, None] if layers else [None]:
            try:
                run = GraphedCall(functools.partial(work, kernels), device, self._pool)
                run()
                _require_same(output[0], theirs)
                return _Call(inputs, run, output)
            except (Unsupported, RuntimeError) as error:
                self._note(name, error)
        return None

    def _note(self, name: str, reason: object) -> None:
        self.notes[f"vision module {name} in the model's own way: {str(reason).splitlines()[0]}"] = None


@contextmanager
def _no_synchronisation() -> Iterator[None]:
    """Raise an error if the host waits for the device: such a call cannot be captured."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")  # a warning that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


def _key(args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Hashable | None:
    """Return the key of a call's graph; None for a call that cannot be captured.

    Tensors on the host are refused: the host could read their values and make them constants of the graph.
    """
    described: list[Hashable] = [len(args), *kwargs]
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor) and value.device == device:
            described.append((value.shape, value.dtype))
        elif isinstance(value, _PLAIN):
            described.append((type(value), value))
        else:
            return None
    return tuple(described)


def _require_same(output: Any, theirs: Any) -> None:
    """Compare the output of the graph with that of the module's own forward.

    Raises:
        Unsupported: the outputs differ.
    """
    for ours, own in zip(*(pytree.tree_leaves(each) for each in (output, theirs)), strict=True):
        if not isinstance(own, torch.Tensor) or not own.is_floating_point():
            continue
        distance = float((ours.float() - own.float()).norm() / own.float().norm().clamp(min=1e-12))
        # True for NaN as well.
        if not distance <= _TOLERANCE.get(own.dtype, 0.0):
            raise Unsupported(f"its graph's output is {distance:.2g} from its own")
