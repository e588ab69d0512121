"""From a model's name to a loaded model.

``check`` reads names and small JSON files only and imports no torch, so that a typing error costs no waiting;
``load`` then builds the model.
"""

from __future__ import annotations

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from unfuse.errors import CheckpointError, DeviceError

if TYPE_CHECKING:
    import torch

    from unfuse.staged_model import StagedModel

DEMO: Final = "demo"
RANDOM: Final = "random:"
_RANDOM_MODELS: Final = ("eventgpt-7b",)
_MODEL_TYPES: Final = ("EventChat_llama",)
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")
ENGINES: Final = ("auto", "eager")
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A model's name, understood."""

    name: str
    kind: Literal["demo", "random", "folder", "hub"]


def check_model(name: str) -> ModelRef:
    """Understands a MODEL argument.

    Raises:
        CheckpointError: no such folder, no checkpoint in it, or a family that has no adapter.
    """
    if name == DEMO:
        return ModelRef(name=name, kind="demo")
    if name.startswith(RANDOM):
        shape = name.removeprefix(RANDOM)
        if shape not in _RANDOM_MODELS:
            raise CheckpointError(
                name, found=f"shape {shape!r}", expected=" or ".join(RANDOM + s for s in _RANDOM_MODELS)
            )
        return ModelRef(name=name, kind="random")
    folder = Path(name)
    if folder.is_dir():
        _check_family(folder)
        return ModelRef(name=name, kind="folder")
    if folder.exists():
        raise CheckpointError(name, found="a file", expected="a checkpoint folder")
    if _HUB_NAME.fullmatch(name):
        return ModelRef(name=name, kind="hub")
    near = difflib.get_close_matches(name, [DEMO, *(RANDOM + shape for shape in _RANDOM_MODELS)], n=1)
    raise CheckpointError(
        f"model {name!r}",
        found="no such folder",
        expected="a checkpoint folder, a hub name, demo or random:eventgpt-7b",
        fix=f"did you mean {near[0]}?" if near else None,
    )


def check_device(device: str) -> None:
    """Refuses what cannot be a device.

    Raises:
        DeviceError: not ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    if not _DEVICE.fullmatch(device):
        raise DeviceError("device", found=repr(device), expected="auto, cpu, cuda or cuda:N")


def check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Refuses a dtype or engine that does not exist.

    Raises:
        DeviceError: with the allowed values.
    """
    if value not in allowed:
        raise DeviceError(what, found=repr(value), expected=", ".join(allowed))


def load(name: str, *, device: str = "auto", dtype: str = "auto", engine: str = "auto") -> StagedModel:
    """Loads a model with its stages apart.

    Args:
        name: a checkpoint folder, a hub name, ``demo`` or ``random:eventgpt-7b`` (real size, random weights).
        device: ``auto`` is CUDA if there is one.
        dtype: ``auto`` is bfloat16 on CUDA and float32 on the CPU.
        engine: ``auto`` or ``eager``.

    Raises:
        CheckpointError: no such model, or an incomplete one.
        DeviceError: no such device, dtype or engine here.
    """
    ref = check_model(name)
    check_device(device)
    check_choice("dtype", dtype, DTYPES)
    check_choice("engine", engine, ENGINES)
    place = _torch_device(device)
    precision = _torch_dtype(dtype, place)

    from unfuse.adapters.eventgpt_loading import load_folder, load_random
    from unfuse.staged_model import StagedModel, pick_engine

    if ref.kind == "random":
        adapter = load_random(place, precision)
    elif ref.kind == "demo":
        from unfuse.samples.demo import demo_checkpoint

        adapter = load_folder(demo_checkpoint(), place, precision, notes=("demo model: random weights",))
    else:
        adapter = load_folder(_local(ref), place, precision)
    return StagedModel(name, adapter, pick_engine(engine, adapter.model))


def _check_family(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(str(folder), found="no config.json", expected="a checkpoint folder")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(config), found=f"malformed JSON ({error})", expected="a model config") from None
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found not in _MODEL_TYPES:
        raise CheckpointError(
            str(config),
            found=f"model_type {found!r}",
            expected=", ".join(_MODEL_TYPES),
            fix="this family has no adapter yet",
        )


def _local(ref: ModelRef) -> Path:
    if ref.kind == "folder":
        return Path(ref.name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(ref.name))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"model {ref.name!r}",
            found=f"no such folder, and not on the hub ({type(error).__name__})",
            expected="a checkpoint folder or a hub name",
        ) from None
    _check_family(folder)
    return folder


def _torch_device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(device)
    if place.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (place.index or 0) >= count:
            raise DeviceError(
                f"device {device!r}",
                found=f"{count} CUDA devices",
                expected="one that exists",
                fix="use --device cpu",
            )
    return place


def _torch_dtype(dtype: str, place: torch.device) -> torch.dtype:
    import torch

    if dtype == "auto":
        dtype = "bfloat16" if place.type == "cuda" else "float32"
    found: torch.dtype = getattr(torch, dtype)
    return found
