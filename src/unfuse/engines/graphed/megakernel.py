"""A decode step of one sequence as one persistent kernel: ``kernels/decode_step.cu``, compiled for the model's sizes.

With five kernels a layer the memory is idle at each border between two kernels: the second kernel waits for the results
of the first. A persistent kernel keeps streaming weights across these borders. A pass computes 1 to ``MAX_TOKENS``
consecutive tokens. The kernel reads the number of tokens on the device, and the bits of a token do not depend on the
number. The kernel needs Hopper's bulk tensor copies and large shared memory; other devices, dtypes and sizes run five
kernels a layer.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

import torch

from unfuse.engines.graphed.llama import Llama, token_products
from unfuse.engines.unsupported import Unsupported
from unfuse.measure.products import declare

_SOURCE: Final = Path(__file__).with_name("kernels") / "decode_step.cu"
MAX_TOKENS: Final = 16
"""Consecutive tokens of one pass."""
_THREADS: Final = 20 * 32
"""Threads of a block: 16 warps compute, 1 warp copies, and 3 warps only give up registers.

This constant and the constants below must be equal to the constants of ``decode_step.cu``; a test compares them.
"""
_WARPS: Final = 16
_STAGE_BYTES: Final = 16384
_ENTRIES: Final = 8
_RUNS: Final = 2
"""Runs of columns per weight row. With 2 runs a tile has 8 rows: faster on an H200 than 16 rows (1 run)."""
_SLICE: Final = 4096
"""Columns of K in a slice. A product with more columns is summed slice by slice."""
_FLIGHT: Final = 3
"""Stages of the ring with copies in flight. More would delay every access to the L2."""
_MIN_STAGES: Final = 4
_MAX_LAYERS: Final = 120
"""Tensor maps are in constant memory; it has 64 KiB."""
_TABLE: Final = ("qkv", "out", "gate_up", "down")
_BOX: Final = 64
"""Columns of a line of a stage: 128 bytes, the width of the swizzle."""
_HOPPER: Final = 9


@dataclass(frozen=True, slots=True)
class Sizes:
    """Macros that the source is compiled with."""

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
    tokens: int = MAX_TOKENS
    runs: int = _RUNS
    flight: int = _FLIGHT
    setmaxnreg: int = 1

    @property
    def rows(self) -> int:
        """Weight rows of a tile."""
        return 16 // self.runs

    @property
    def head_waits_for_its_counter(self) -> bool:
        """True if no producer can reach the head before block 0 has reset the head's tile counter.

        Block 0 resets it after the first grid barrier. From there to the head, the ring of block 0 needs at least four
        stages for the first layer and five for every other layer. If all of them fit into the ring, the producer may
        draw tickets that the pass before has left, and tiles of the head would not be computed.
        """
        return 5 * self.layers - 1 > self.stages

    @property
    def columns(self) -> int:
        """Weight columns of a stage."""
        return _STAGE_BYTES // 2 // self.rows

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory: the ring and ``struct Shared`` of the source; keep this sum equal to both."""
        table, norms = 8 * (self.layers + 1) * _ENTRIES, 4 * self.tokens * _WARPS
        marks, received = 8 * self.tokens + 8 * 8 * 16, 4 * self.tokens * self.head_size
        slice_sums = 4 * self.rows * self.tokens * max(1, self._static_tiles())
        results = max(128, self.rows * self.tokens)
        sums = 2 * 4 * _WARPS * (results + results // 16)
        given = 2 * (16 * (self.head_size + 32) + 2 * self.tokens * self.head_size)
        attended = 4 * 8 * 4 * self.head_size
        fixed = 8 + table + norms + marks + max(received, slice_sums) + max(sums, given, attended) + 128
        return self.stages * (_STAGE_BYTES + 20) + fixed

    def _static_tiles(self) -> int:
        """Return the most tiles per block of a product that is summed slice by slice."""
        width, rows = self.heads * self.head_size, self.rows
        products = (
            (self.hidden, (width + 2 * self.kv_heads * self.head_size) // rows),
            (width, self.hidden // rows),
            (self.hidden, 2 * self.inner // rows),
            (self.inner, self.hidden // rows),
            (self.hidden, -(-self.vocabulary // rows)),
        )
        return max((-(-tiles // self.programs) for k, tiles in products if k > _SLICE), default=0)


class DecodeRows(Protocol):
    """Inputs and outputs of a pass; ``DecodeBatch`` has these attributes."""

    @property
    def logits(self) -> torch.Tensor:
        """float32 ``[T, V]``, written."""

    @property
    def cosine(self) -> torch.Tensor:
        """Cosine of the rotary embedding, ``[T, D / 2]``."""

    @property
    def sine(self) -> torch.Tensor:
        """Sine of the rotary embedding, ``[T, D / 2]``."""

    @property
    def caches(self) -> torch.Tensor:
        """int64 ``[1]``: offset of the KV cache from the base pointer."""

    @property
    def capacity(self) -> torch.Tensor:
        """int32 ``[1]``: capacity of the KV cache in positions."""

    @property
    def write_position(self) -> torch.Tensor:
        """int32 ``[1]``: position of the first token."""


@dataclass(frozen=True, slots=True)
class MegakernelWorkspace:
    """Workspace of a pass. Two passes in the workspace must not run at the same time."""

    x: torch.Tensor
    """``[MAX_TOKENS, H]``: the tokens' embeddings, in fragment order."""
    count: torch.Tensor
    """int32: tokens of the pass; with 0 the kernel returns at once."""
    qkv: torch.Tensor
    attended: torch.Tensor
    inner: torch.Tensor
    barrier_counter: torch.Tensor
    """int32, counter of the grid barrier: starts at zero; the top bit flips at each barrier."""
    tile_counters: torch.Tensor
    """int32 ``[products]``: tickets drawn of each product (work stealing). Zeros at first.

    The kernel resets each counter after the product, and the head's counter in the next pass.
    """


class Megakernel:
    """Computes the logits after the next tokens of one sequence."""

    def __init__(self, llama: Llama, sizes: Sizes):
        """Compile the kernel.

        Args:
            llama: the weights; the kernel reads them in place.
            sizes: from ``megakernel_sizes``.

        Raises:
            Unsupported: there is no compiler, or it refuses.
        """
        self._llama = llama
        self._sizes = sizes
        self._kernel = _compiled(self._sizes, llama)
        self._table, self._norms = _table(llama)
        self._products = token_products(llama)

    def memory(self) -> MegakernelWorkspace:
        """Allocate a workspace."""
        llama = self._llama
        zeros = functools.partial(torch.zeros, dtype=llama.dtype, device=llama.device)
        return MegakernelWorkspace(
            x=zeros(MAX_TOKENS, llama.hidden),
            count=zeros((), dtype=torch.int32) + 1,
            qkv=zeros(MAX_TOKENS, llama.heads.width),
            attended=zeros(MAX_TOKENS, llama.heads.num_heads * llama.heads.head_dim),
            inner=zeros(MAX_TOKENS, llama.inner),
            barrier_counter=zeros((), dtype=torch.int32),
            tile_counters=zeros(4 * len(llama.layers) + 1, dtype=torch.int32),
        )

    def __call__(self, rows: DecodeRows, memory: MegakernelWorkspace, base_pointer: torch.Tensor) -> None:
        """Launch a pass: write the new positions to the KV cache, and the logits to ``rows.logits``.

        Args:
            rows: of one sequence, after ``begin_step``: ``cosine``, ``sine`` and ``logits`` have a row for each of the
                ``memory.count`` tokens. Their positions begin at ``write_position``. The cache has room for them.
            memory: the workspace; its ``x`` holds the embeddings.
            base_pointer: base pointer of the cache's offset.
        """
        from cuda.bindings import driver

        pointers = (
            self._table, memory.x, rows.logits, rows.cosine, rows.sine, base_pointer, rows.caches, rows.capacity,
            rows.write_position, memory.count, memory.qkv, memory.attended, memory.inner, memory.barrier_counter,
            memory.tile_counters,
        )  # fmt: skip
        values = (*(tensor.data_ptr() for tensor in pointers), self._llama.eps, self._llama.scale)
        types = (*[ctypes.c_void_p] * len(pointers), ctypes.c_float, ctypes.c_float)
        cooperative, cluster = driver.CUlaunchAttribute(), driver.CUlaunchAttribute()
        # Blocks wait for each other, so a cooperative launch starts only if all blocks are resident.
        cooperative.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_COOPERATIVE
        cooperative.value.cooperative = 1
        # The blocks that share an attention head combine their results through distributed shared memory.
        cluster.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        cluster.value.clusterDim.x, cluster.value.clusterDim.y, cluster.value.clusterDim.z = self._sizes.splits, 1, 1
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self._sizes.programs, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = _THREADS, 1, 1
        config.sharedMemBytes = self._sizes.shared_bytes
        config.hStream = torch.cuda.current_stream(self._llama.device).cuda_stream
        config.attrs, config.numAttrs = [cooperative, cluster], 2
        declare("decode_step", self._products)
        with torch.cuda.device(self._llama.device):
            _checked(driver.cuLaunchKernelEx(config, self._kernel, (values, types), 0))


def megakernel_sizes(llama: Llama) -> Sizes | None:
    """Return the sizes to compile for; None if device, dtype or sizes are not supported."""
    device, heads = llama.device, llama.heads
    if device.type != "cuda" or torch.cuda.get_device_capability(device)[0] < _HOPPER or llama.dtype != torch.bfloat16:
        return None
    widths = llama.hidden, llama.inner, heads.num_heads * heads.head_dim
    if any(width % 256 for width in widths) or heads.head_dim not in (64, 128):
        return None
    weights = [linear.weight for layer in llama.layers for linear in (layer.qkv, layer.out, layer.gate_up, layer.down)]
    if any(weight.data_ptr() % 16 or not weight.is_contiguous() for weight in (*weights, llama.head.weight)):
        return None
    properties: Any = torch.cuda.get_device_properties(device)
    programs = properties.multi_processor_count
    if heads.num_heads > programs or len(llama.layers) > _MAX_LAYERS:
        return None
    sizes = Sizes(
        layers=len(llama.layers),
        hidden=llama.hidden,
        inner=llama.inner,
        heads=heads.num_heads,
        kv_heads=heads.num_kv_heads,
        head_size=heads.head_dim,
        vocabulary=len(llama.head.weight),
        head_norms=int(llama.layers[0].head_norm_weights is not None),
        programs=programs,
        stages=0,
        # Two blocks are a cluster, and the grid consists of whole clusters.
        splits=min(2, programs // heads.num_heads) if programs % 2 == 0 else 1,
    )
    ring_bytes = properties.shared_memory_per_block_optin - sizes.shared_bytes
    stages = ring_bytes // (_STAGE_BYTES + 20)
    sizes = replace(sizes, stages=stages)
    return sizes if stages >= _MIN_STAGES and sizes.head_waits_for_its_counter else None


def fragment_order(columns: int) -> torch.Tensor:
    """Return the column at each index of an activation vector in the kernel's order of B fragments.

    A lane of a warp needs 2 columns of each of 4 chunks of 8 columns. In this order the lane's 8 columns are 16
    consecutive bytes.
    """
    index = torch.arange(columns)
    block = 32 * _RUNS
    run, lane, word, low = index % block // 32, index // 8 % 4, index // 2 % 4, index % 2
    return index // block * block + (word // 2 * 2 * _RUNS + run * 2 + word % 2) * 8 + lane * 2 + low


def _table(llama: Llama) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return a table of addresses of biases and norm weights, and the norm weights in fragment order.

    The table is int64 ``[layers + 1, entries]``, 0 for a missing tensor. The table points to the norm weights: keep
    them alive.
    """
    order = fragment_order(llama.hidden).to(llama.device)
    norms: list[torch.Tensor] = []

    def at(tensor: torch.Tensor | None) -> int:
        return 0 if tensor is None else tensor.data_ptr()

    def ordered(norm_weight: torch.Tensor) -> int:
        norms.append(norm_weight.detach()[order].contiguous())
        return at(norms[-1])

    rows = []
    for layer in llama.layers:
        biases = [at(getattr(layer, name).bias) for name in _TABLE]
        rows.append(
            [
                *biases,
                ordered(layer.input_norm_weight),
                ordered(layer.post_norm_weight),
                *map(at, layer.head_norm_weights or (None, None)),
            ]
        )
    rows.append([at(llama.head.bias), ordered(llama.final_norm_weight), *[0] * (_ENTRIES - 2)])
    return torch.tensor(rows, dtype=torch.int64, device=llama.device), norms


def _tensor_maps(llama: Llama, sizes: Sizes) -> bytes:
    """Return the tensor maps of all weight matrices, in the order of use. One copy by a map is one stage of a tile."""
    from cuda.bindings import driver

    def encoded(weight: torch.Tensor, *, gated: bool = False) -> bytes:
        rows, columns = weight.shape
        row = 2 * columns
        shape: tuple[int, ...]
        strides: tuple[int, ...]
        box: tuple[int, ...]
        # A line of a stage is 128 bytes of a row, the width of the swizzle. Rows of gate and up alternate in a tile.
        if gated:
            shape, strides = (_BOX, 2, rows // 2, columns // _BOX), (rows // 2 * row, row, 2 * _BOX)
            box = (_BOX, 2, sizes.rows // 2, sizes.columns // _BOX)
        else:
            shape, strides = (_BOX, rows, columns // _BOX), (row, 2 * _BOX)
            box = (_BOX, sizes.rows, sizes.columns // _BOX)
        described = _checked(
            driver.cuTensorMapEncodeTiled(
                driver.CUtensorMapDataType.CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                len(shape),
                weight.data_ptr(),
                [driver.cuuint64_t(n) for n in shape],
                [driver.cuuint64_t(n) for n in strides],
                [driver.cuuint32_t(n) for n in box],
                [driver.cuuint32_t(1)] * len(shape),
                driver.CUtensorMapInterleave.CU_TENSOR_MAP_INTERLEAVE_NONE,
                driver.CUtensorMapSwizzle.CU_TENSOR_MAP_SWIZZLE_128B,
                driver.CUtensorMapL2promotion.CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                driver.CUtensorMapFloatOOBfill.CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        )
        return ctypes.string_at(int(described.getPtr()), 128)

    weights = [(getattr(layer, name).weight, name == "gate_up") for layer in llama.layers for name in _TABLE]
    return b"".join(encoded(weight, gated=gated) for weight, gated in [*weights, (llama.head.weight, False)])


def _compiled(sizes: Sizes, llama: Llama) -> Any:
    """Return the kernel, ready for launches.

    Raises:
        Unsupported: there is no compiler, or it refuses.
    """
    try:
        from cuda.bindings import driver, nvrtc
    except ImportError:
        raise Unsupported("the package cuda-bindings is not installed") from None
    major, minor = torch.cuda.get_device_capability(llama.device)
    macros = {**asdict(sizes), "shared_bytes": sizes.shared_bytes}
    defined = (f"-D{name.upper()}={value}" for name, value in macros.items())
    # The suffix "a" enables setmaxnreg, a feature of this architecture alone.
    options = [option.encode() for option in (f"--gpu-architecture=sm_{major}{minor}a", "--std=c++17", *defined)]
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
        with torch.cuda.device(llama.device):
            torch.cuda.current_stream().synchronize()  # the driver's calls need torch's context
            module = _checked(driver.cuModuleLoadData(code))
            kernel = _checked(driver.cuModuleGetFunction(module, b"decode_step"))
            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            _checked(driver.cuFuncSetAttribute(kernel, attribute, sizes.shared_bytes))
            maps = _tensor_maps(llama, sizes)
            symbol, size = _checked(driver.cuModuleGetGlobal(module, b"maps"))
            assert size == len(maps), (size, len(maps))
            source = ctypes.create_string_buffer(maps, size)
            _checked(driver.cuMemcpyHtoD(symbol, ctypes.addressof(source), size))
    except (RuntimeError, OSError) as error:
        raise Unsupported(f"it could not be compiled ({error})") from None
    return kernel


def _checked(result: tuple[Any, ...]) -> Any:
    """Return the values of a call of the driver or the compiler.

    Raises:
        RuntimeError: the call failed.
    """
    error, *values = result
    if int(error) != 0:
        raise RuntimeError(error.name)
    return values[0] if len(values) == 1 else values or None
