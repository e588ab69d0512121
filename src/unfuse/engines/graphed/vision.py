"""Stage 3 as captured graphs: one for each vision module and each shape of what it is given."""

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

_MOST_SHAPES: Final = 8
"""Kept for a module; the one that was used longest ago goes first."""
_TOLERANCE: Final = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.02}
"""Largest relative distance from the module's own output at which both compute the same."""
_PLAIN: Final = (bool, int, float, str, type(None), torch.dtype)


@dataclass(frozen=True, slots=True)
class _Call:
    """A captured call: where its tensors are put, what runs, and where its results are."""

    inputs: list[torch.Tensor]
    run: GraphedCall
    found: list[Any]
    """The one output."""


class CapturedVision:
    """Runs vision modules as graphs; their hooks fire as ever, those of modules inside them do not."""

    def __init__(self, modules: Mapping[str, nn.Module], tuner: Autotuner, pool: Any):
        self._modules = modules
        self._layers = {name: TowerLayers(module, tuner) for name, module in modules.items()}
        self._calls: dict[str, OrderedDict[Hashable, _Call | None]] = {name: OrderedDict() for name in modules}
        self._pool = pool
        self.notes: dict[str, None] = {}
        """Why which module runs its own forward."""

    @contextmanager
    def active(self) -> Iterator[None]:
        """While the body runs, the modules' forwards are their graphs."""
        taken = [name for name, module in self._modules.items() if "forward" not in vars(module)]
        for name in taken:
            self._modules[name].forward = functools.partial(self._forward, name)
        try:
            yield
        finally:
            for name in taken:
                del self._modules[name].forward

    def close(self) -> None:
        """Frees the graphs."""
        for calls in self._calls.values():
            calls.clear()

    def _forward(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """The module's output, in memory that is the caller's."""
        module, calls = self._modules[name], self._calls[name]
        own: Callable[..., Any] = functools.partial(type(module).forward, module)
        key = _key(args, kwargs, next(module.parameters()).device)
        if key is None:
            self._note(name, "it is given something else than tensors on its device and plain values")
            return own(*args, **kwargs)
        if key not in calls:
            calls[key] = self._captured(name, own, args, kwargs)
            if len(calls) > _MOST_SHAPES:
                calls.popitem(last=False)
        calls.move_to_end(key)
        call = calls[key]
        if call is None:
            return own(*args, **kwargs)
        given = _tensors(args, kwargs)
        for target, tensor in zip(call.inputs, given, strict=True):
            target.copy_(tensor)
        call.run()
        return pytree.tree_map_only(torch.Tensor, torch.clone, call.found[0])

    def _captured(
        self, name: str, own: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _Call | None:
        """The call as a graph, or None and a note where it cannot be one."""
        device = next(self._modules[name].parameters()).device
        args, kwargs = pytree.tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
        inputs = _tensors(args, kwargs)
        found: list[Any] = []

        def work(layers: TowerLayers | None) -> None:
            with layers.own_kernels() if layers else nullcontext():
                found[:] = [own(*args, **kwargs)]

        try:
            with _no_looks():
                theirs = own(*args, **kwargs)
        except RuntimeError as error:
            self._note(name, error)
            return None
        layers = self._layers[name]
        for replaced in [layers, None] if layers else [None]:
            try:
                run = GraphedCall(functools.partial(work, replaced), device, self._pool)
                run()
                _require_same(found[0], theirs)
                return _Call(inputs, run, found)
            except (Unsupported, RuntimeError) as error:
                self._note(name, error)
        return None

    def _note(self, name: str, reason: object) -> None:
        self.notes[f"vision module {name} in the model's own way: {str(reason).splitlines()[0]}"] = None


@contextmanager
def _no_looks() -> Iterator[None]:
    """Refuses whatever makes the host wait for the device: such a call cannot be captured."""
    if not torch.cuda.is_available():
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Synchronization debug mode")  # that it is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _tensors(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    return [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Tensor)]


def _key(args: tuple[Any, ...], kwargs: dict[str, Any], device: torch.device) -> Hashable | None:
    """What two calls must share to be the same graph; None for what no graph can take.

    The host may read a tensor of its own without a look at the device, and its values would stay in the graph.
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
    """Holds what the graph gave against the module's own forward.

    Raises:
        Unsupported: it is something else.
    """
    for mine, own in zip(*(pytree.tree_leaves(each) for each in (output, theirs)), strict=True):
        if not isinstance(own, torch.Tensor) or not own.is_floating_point():
            continue
        apart = float((mine.float() - own.float()).norm() / own.float().norm().clamp(min=1e-12))
        # Not a number is far apart.
        if not apart <= _TOLERANCE.get(own.dtype, 0.0):
            raise Unsupported(f"its graph's output is {apart:.2g} from its own")
