"""``unfuse doctor``: list installed and missing packages, with the commands that install them."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from unfuse.extras import install_command
from unfuse.report import print_line

_OPTIONAL: Final = {
    "h5py": ("DSEC events.h5", "unfuse[dsec]"),
    "hdf5plugin": ("DSEC's Blosc compression", "unfuse[dsec]"),
    "evt3": ("Prophesee RAW in EVT3", "unfuse[cameras]"),
    "aedat": ("iniVation AEDAT4", "unfuse[cameras]"),
    "av": ("video files", "unfuse[video]"),
    "pyarrow": ("exports to Parquet", "unfuse[export]"),
    "fastapi": ("unfuse serve", "unfuse[serve]"),
    "ray": ("unfuse run --ray", "unfuse[ray]"),
    "vllm": ("engine vllm, on Linux with CUDA", "unfuse[vllm]"),
    "torchvision": ("processors of other families than EventGPT, LLaVA-1.5, Video-LLaVA", "torchvision"),
    "accelerate": ("device_map for models larger than one device", "accelerate"),
}


@click.command()
def doctor() -> int:
    """List installed and missing packages, and how to install them."""
    import torch

    from unfuse._version import __version__
    from unfuse.measure.environment import PACKAGES, cpu_name, gpu_state, package_version

    console = Console(highlight=False, soft_wrap=True)
    print_line(console, f"unfuse       {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name in PACKAGES:
        print_line(console, f"{name:<12} {package_version(name) or 'MISSING'}")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    print_line(console, f"CPU          {cpu_name()}, {os.cpu_count()} cores, {memory:.0f} GiB memory")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            name = torch.cuda.get_device_name(index)
            print_line(console, f"cuda:{index}       {name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
            if state := gpu_state(index):
                print_line(console, f"             driver {state['driver_version']}, {state['power.draw']} now")
    else:
        print_line(
            console,
            "CUDA         none: models run on the CPU (for a GPU: a CUDA build of torch and a driver)",
        )
    for name, (use, requirement) in _OPTIONAL.items():
        version = package_version(name)
        print_line(console, f"{name:<12} {version or f'not installed; for {use}: {install_command(requirement)}'}")
    checkpoint = Path("checkpoints/EventGPT-7b")
    found = (
        "found" if checkpoint.is_dir() else "not here; put a published EventGPT checkpoint there, or name its folder"
    )
    print_line(console, f"{checkpoint}: {found}")
    print_line(console, "demo         built in; try: unfuse bench")
    return 0
