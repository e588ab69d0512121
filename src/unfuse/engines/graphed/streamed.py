"""A decode step of one sequence as one kernel: ``kernels/decode_step.cu``, compiled for the model's sizes.

Between two kernels, however early the second one starts, the memory rests while results are passed on, five times a
layer. Within one kernel the weights' stream never stops. It needs what Hopper brought (copies
that complete at a barrier in shared memory, and much of that memory): other devices, dtypes and odd sizes keep the
kernel-by-kernel step.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from unfuse.engines.graphed.structure import Llama
from unfuse.engines.unserved import Unserved

if TYPE_CHECKING:
    from unfuse.engines.graphed.network import Batch

_SOURCE: Final = Path(__file__).with_name("kernels") / "decode_step.cu"
_THREADS: Final = 17 * 32
"""As in the source, like what follows: sixteen warps compute, one copies."""
_STAGE_BYTES: Final = 16384
_SUMS_BYTES: Final = 2 * 16 * (2 * 128 * 4 + 4)
_ENTRIES: Final = 12
_FEWEST_STAGES: Final = 3
_TABLE: Final = ("qkv", "out", "gate_up", "down")
_HOPPER: Final = 9


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the source is compiled with."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    head_norms: int
    programs: int
    stages: int
    splits: int

    @property
    def shared_bytes(self) -> int:
        """Of shared memory: the ring with its barriers and tags, the table, and what waits to be added up or to."""
        table, x = 8 * (self.layers + 1) * _ENTRIES, 2 * self.hidden
        return self.stages * (_STAGE_BYTES + 20) + table + x + _SUMS_BYTES + 256

    @property
    def partial(self) -> int:
        """float32 numbers that attention leaves for the product behind it."""
        return self.heads * self.splits * (self.head_size + 2)


@dataclass(frozen=True, slots=True)
class Streaming:
    """Memory of one step at a time."""

    x: torch.Tensor
    """``[1, H]``: where the token's embedding goes."""
    qkv: torch.Tensor
    inner: torch.Tensor
    partial: torch.Tensor
    counter: torch.Tensor
    """int32, of meetings: begins at zero, and its top bit flips with each."""
    tickets: torch.Tensor
    """int32 zeros, left as zeros."""


class StreamedStep:
    """Gives the logits after one more token of one sequence."""

    def __init__(self, llama: Llama, sizes: Sizes):
        """Compiles the kernel.

        Args:
            llama: whose weights it reads, where they are.
            sizes: as ``streamed_sizes`` gave them.

        Raises:
            Unserved: there is no compiler, or it refuses.
        """
        self._llama = llama
        self._sizes = sizes
        self._kernel = _compiled(self._sizes, llama.device)
        self._table = _table(llama)

    def memory(self) -> Streaming:
        """For steps to work in."""
        llama = self._llama
        empty = functools.partial(torch.empty, dtype=llama.dtype, device=llama.device)
        return Streaming(
            x=empty(1, llama.hidden),
            qkv=empty(llama.heads.width),
            inner=empty(llama.inner),
            partial=torch.empty(self._sizes.partial, dtype=torch.float32, device=llama.device),
            counter=torch.zeros((), dtype=torch.int32, device=llama.device),
            tickets=torch.zeros(4 * len(llama.layers) + 1, dtype=torch.int32, device=llama.device),
        )

    def __call__(self, batch: Batch, memory: Streaming, anchor: torch.Tensor) -> None:
        """Puts the new position into the cache, and the logits into the batch.

        Args:
            batch: of one row, begun: angles and places are there, and the embedding is in the memory's ``x``.
            memory: to work in.
            anchor: which the cache's place counts from.
        """
        from cuda.bindings import driver

        pointers = (
            self._table, memory.x, batch.logits, batch.cosine, batch.sine, anchor, batch.caches, batch.capacity,
            batch.here, memory.qkv, memory.inner, memory.partial, memory.counter, memory.tickets,
        )  # fmt: skip
        values = (*(tensor.data_ptr() for tensor in pointers), self._llama.eps, self._llama.scale)
        types = (*[ctypes.c_void_p] * len(pointers), ctypes.c_float, ctypes.c_float)
        together = driver.CUlaunchAttribute()
        # All programs are there at once or none: they wait for each other.
        together.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        together.value.cooperative = 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self._sizes.programs, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = _THREADS, 1, 1
        config.sharedMemBytes = self._sizes.shared_bytes
        config.hStream = torch.cuda.current_stream(self._llama.device).cuda_stream
        config.attrs, config.numAttrs = [together], 1
        with torch.cuda.device(self._llama.device):
            _checked(driver.cuLaunchKernelEx(config, self._kernel, (values, types), 0))


def streamed_sizes(llama: Llama) -> Sizes | None:
    """What to compile for; None where the step is not for this device, dtype or these sizes."""
    device, heads = llama.device, llama.heads
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < _HOPPER or llama.dtype != torch.bfloat16:
        return None
    if any(n % 256 for n in (llama.hidden, llama.inner, heads.heads * heads.size)) or heads.size not in (64, 128):
        return None
    weights = [linear.weight for layer in llama.layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    if any(weight.data_ptr() % 16 or not weight.is_contiguous() for weight in (*weights, llama.head.weight)):
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    programs = properties.multi_processor_count
    if heads.heads > programs:
        return None
    sizes = Sizes(
        layers=len(llama.layers),
        hidden=llama.hidden,
        inner=llama.inner,
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_size=heads.size,
        vocabulary=len(llama.head.weight),
        head_norms=int(llama.layers[0].head_gains is not None),
        programs=programs,
        stages=0,
        splits=min(2, programs // heads.heads),
    )
    room = properties.shared_memory_per_block_optin - sizes.shared_bytes
    stages = room // (_STAGE_BYTES + 20)
    return replace(sizes, stages=stages) if stages >= _FEWEST_STAGES else None


def _table(llama: Llama) -> torch.Tensor:
    """Where weights, biases and gains are: int64 ``[layers + 1, entries]``, 0 for what is not there."""

    def at(tensor: torch.Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    rows = []
    for layer in llama.layers:
        linears = [getattr(layer, name) for name in _TABLE]
        gains = layer.head_gains or (None, None)
        rows.append(
            [*(at(linear.weight) for linear in linears), *(at(linear.bias) for linear in linears),
             *map(at, (layer.input_gain, layer.post_gain, *gains))]
        )  # fmt: skip
    rows.append([at(llama.head.weight), at(llama.head.bias), at(llama.final_gain), *[0] * (len(rows[0]) - 3)])
    return torch.tensor(rows, dtype=torch.int64, device=llama.device)


def _compiled(sizes: Sizes, device: torch.device) -> Any:
    """The kernel, ready to be launched.

    Raises:
        Unserved: there is no compiler, or it refuses.
    """
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError:
        raise Unserved("the package cuda-bindings is not installed") from None
    major, minor = torch.cuda.get_device_capability(device)
    defined = (f"-D{name.upper()}={value}" for name, value in asdict(sizes).items())
    options = [option.encode() for option in (f"--gpu-architecture=sm_{major}{minor}", "--std=c++17", *defined)]
    try:
        program = _checked(nvrtc.nvrtcCreateProgram(_SOURCE.read_bytes(), _SOURCE.name.encode(), 0, [], []))
        try:
            _checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
        except RuntimeError as error:
            log = b" " * _checked(nvrtc.nvrtcGetProgramLogSize(program))
            _checked(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"{error}: {log.decode(errors='replace').strip()}") from None
        code = b" " * _checked(nvrtc.nvrtcGetCUBINSize(program))
        _checked(nvrtc.nvrtcGetCUBIN(program, code))
        with torch.cuda.device(device):
            torch.cuda.current_stream().synchronize()  # the driver's calls need torch's context to be there
            module = _checked(driver.cuModuleLoadData(code))
            kernel = _checked(driver.cuModuleGetFunction(module, b"decode_step"))
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(kernel, attribute, sizes.shared_bytes))
    except (RuntimeError, OSError) as error:
        raise Unserved(f"it could not be compiled ({error})") from None
    return kernel


def _checked(result: tuple[Any, ...]) -> Any:
    """What a call of the driver or the compiler gave.

    Raises:
        RuntimeError: it failed.
    """
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(error.name)
    return values[0] if len(values) == 1 else None
