"""An element of an mma depends on its row of A, its column of B and its accumulator only.

The decode step relies on it: a token's bits are the same whichever tokens share its pass. NVIDIA's ISA does not promise
it, so it is tested on each GPU that the step runs on.
"""

from __future__ import annotations

import ctypes

import pytest
import torch


def hopper():
    return torch.cuda.is_available() and torch.cuda.get_device_capability()[0] >= 9


pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not hopper(), reason="no device of the Hopper generation or later"),
]

CHAIN = 16
"""mma on one accumulator, as many as a warp of the decode step does for a slice of K."""
PAIRS = 24
SOURCE = rb"""
typedef unsigned int u32;
// a [N, CHAIN, 16, 16] and b [N, CHAIN, 8, 16] in bfloat16, c [N, 16, 8] in float32; a warp per n.
extern "C" __global__ void chains(const u32* a, const u32* b, float* c) {
    const int row = threadIdx.x / 4, two = threadIdx.x % 4;
    a += (long long)blockIdx.x * CHAIN * 128, b += (long long)blockIdx.x * CHAIN * 64;
    c += blockIdx.x * 128 + row * 8 + two * 2;
    float sum[4] = {c[0], c[1], c[64], c[65]};
    for (int k = 0; k < CHAIN; ++k, a += 128, b += 64) {
        const u32 *top = a + row * 8 + two, *bottom = top + 64, *column = b + row * 8 + two;
        asm volatile(
            "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
            : "r"(top[0]), "r"(bottom[0]), "r"(top[4]), "r"(bottom[4]), "r"(column[0]), "r"(column[4]));
    }
    c[0] = sum[0], c[1] = sum[1], c[64] = sum[2], c[65] = sum[3];
}
"""


def checked(result):
    error, *values = result
    assert int(error) == 0, error
    return values[0] if values else None


@pytest.fixture(scope="module")
def chains():
    """Run ``c += a @ b`` in place, one warp per matrix."""
    bindings = pytest.importorskip("cuda.bindings")
    from cuda.bindings import driver, nvrtc

    assert bindings
    major, minor = torch.cuda.get_device_capability()
    options = [f"--gpu-architecture=sm_{major}{minor}".encode(), f"-DCHAIN={CHAIN}".encode()]
    program = checked(nvrtc.nvrtcCreateProgram(SOURCE, b"chains.cu", 0, [], []))
    checked(nvrtc.nvrtcCompileProgram(program, len(options), options))
    code = b" " * checked(nvrtc.nvrtcGetCUBINSize(program))
    checked(nvrtc.nvrtcGetCUBIN(program, code))
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    kernel = checked(driver.cuModuleGetFunction(checked(driver.cuModuleLoadData(code)), b"chains"))

    def run(a, b, c):
        arguments = tuple(tensor.data_ptr() for tensor in (a, b, c)), (ctypes.c_void_p,) * 3
        checked(
            driver.cuLaunchKernel(
                kernel, len(a), 1, 1, 32, 1, 1, 0, torch.cuda.current_stream().cuda_stream, arguments, 0
            )
        )
        return c

    return run


def rest(kind, *config):
    """Values of the rows and columns that must not matter."""
    if kind == "zero":
        return torch.zeros(config, device="cuda").bfloat16()
    noise = torch.randn(config, device="cuda")
    scales = {"random": 1.0, "huge": 1e37, "denormal": 1e-39}
    return (
        (noise * scales[kind]).bfloat16() if kind in scales else torch.full(config, torch.nan, device="cuda").bfloat16()
    )


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_an_element_does_not_depend_on_other_rows_and_columns(chains, scale):
    torch.manual_seed(0)
    positions = [(row, column) for row in range(16) for column in range(8)]
    rows, columns = (torch.tensor(numbers, device="cuda") for numbers in zip(*positions, strict=True))
    every = torch.arange(len(positions), device="cuda")
    for _ in range(PAIRS):
        row, column = torch.randn(2, CHAIN, 16, device="cuda").mul(scale).bfloat16()
        start = torch.randn((), device="cuda")
        seen = set()
        for kind in ("zero", "random", "huge", "denormal", "nan"):
            a, b = rest(kind, len(positions), CHAIN, 16, 16), rest(kind, len(positions), CHAIN, 8, 16)
            c = torch.randn(len(positions), 16, 8, device="cuda")
            a[every, :, rows], b[every, :, columns], c[every, rows, columns] = row, column, start
            found = chains(a, b, c)[every, rows, columns]
            seen.update(found.view(torch.int32).tolist())
        assert len(seen) == 1


def test_zeros_leave_the_accumulator_as_it_is(chains):
    """A masked position of attention has weight 0."""
    torch.manual_seed(0)
    a = torch.zeros(64, CHAIN, 16, 16, device="cuda").bfloat16()
    b = torch.randn(64, CHAIN, 8, 16, device="cuda").bfloat16()
    c = torch.randn(64, 16, 8, device="cuda") * torch.logspace(-30, 30, 64, device="cuda")[:, None, None]
    assert torch.equal(chains(a, b, c.clone()), c)
