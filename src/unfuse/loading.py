"""From a model's name to a loaded model.

``ModelRef`` and ``Placement`` are parsed from names and small JSON files, without importing torch, so a typing error is
reported at once. ``load`` then builds the model.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from unfuse.engines import ENGINES
from unfuse.errors import CheckpointError, DeviceError, MissingPackageError
from unfuse.extras import install_command
from unfuse.speculation.settings import SpeculationSettings

if TYPE_CHECKING:
    import torch

    from unfuse.adapters.base import Adapter, FamilyLoader, Preprocessor
    from unfuse.staged_model import StagedModel

DEMO: Final = "demo"
RANDOM: Final = "random:"
_EVENTGPT: Final = "EventChat_llama"
_RANDOM_MODELS: Final = {
    "eventgpt-7b": _EVENTGPT,
    "llava-1.5-7b": "llava",
    "video-llava-7b": "video_llava",
    "llava-tiny": "llava",
    "video-llava-tiny": "video_llava",
}
"""``model_type`` of each model that can be made with random weights."""
_VISION_SIDES: Final = ("vision_config", "vision_tower_config", "image_config", "perceiver_config", "mm_vision_config")
_NOT_NEEDED: Final = ["*.py", "*.msgpack", "*.h5", "*.onnx", "*.gguf", "original/*", "consolidated*"]
"""Files of a hub repository that are not downloaded: other formats, and code, because it is never run."""
_DEVICE: Final = re.compile(r"auto|cpu|cuda(:\d+)?")
_DEVICES: Final = re.compile(r"auto|[1-9]\d?|(cpu|cuda|cuda:\d+)(,(cpu|cuda|cuda:\d+))*")
DTYPES: Final = ("auto", "bfloat16", "float16", "float32")
_HUB_NAME: Final = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRef:
    """A parsed model name."""

    name: str
    kind: Literal["demo", "random", "folder", "hub"]
    model_type: str | None = None
    """From ``config.json``; None for a hub name, as its config is not downloaded yet."""

    @property
    def wants_events(self) -> bool:
        """True if the model takes events. Every other family takes the video or image of a sample, if it has one."""
        return self.model_type == _EVENTGPT


def check_model(name: str) -> ModelRef:
    """Parse a MODEL argument.

    Raises:
        CheckpointError: there is no such folder or no checkpoint in it, or no adapter supports its family.
    """
    if name == DEMO:
        return ModelRef(name=name, kind="demo", model_type=_EVENTGPT)
    if name.startswith(RANDOM):
        shape = name.removeprefix(RANDOM)
        if shape not in _RANDOM_MODELS:
            raise CheckpointError(
                name, found=f"shape {shape!r}", expected=" or ".join(RANDOM + s for s in _RANDOM_MODELS)
            )
        return ModelRef(name=name, kind="random", model_type=_RANDOM_MODELS[shape])
    folder = Path(name)
    if folder.is_dir():
        return ModelRef(name=name, kind="folder", model_type=_model_type(folder))
    if folder.exists():
        raise CheckpointError(name, found="a file", expected="a checkpoint folder")
    if _HUB_NAME.fullmatch(name):
        return ModelRef(name=name, kind="hub")
    near = difflib.get_close_matches(name, [DEMO, *(RANDOM + shape for shape in _RANDOM_MODELS)], n=1)
    raise CheckpointError(
        f"model {name!r}",
        found="no such folder",
        expected="a checkpoint folder, a hub name, demo or random:SHAPE",
        fix=f"did you mean {near[0]}?" if near else None,
    )


def check_device(device: str) -> None:
    """Check the name of a device.

    Raises:
        DeviceError: not ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    """
    # A Python caller may pass another type, for example a torch.device.
    if not isinstance(device, str) or not _DEVICE.fullmatch(device):
        raise DeviceError("device", found=repr(device), expected="auto, cpu, cuda or cuda:N")


def check_devices(devices: str) -> None:
    """Check a list of devices.

    Raises:
        DeviceError: not ``auto``, a number, or comma-separated names.
    """
    if not isinstance(devices, str) or not _DEVICES.fullmatch(devices):
        raise DeviceError("devices", found=repr(devices), expected="auto, a number of GPUs, or names: cuda:0,cuda:1")


def check_choice(what: str, value: str, allowed: tuple[str, ...]) -> None:
    """Check that a value is one of the allowed values.

    Raises:
        DeviceError: with the allowed values.
    """
    if value not in allowed:
        raise DeviceError(what, found=repr(value), expected=", ".join(allowed))


def check_engine(engine: str) -> None:
    """Check that an engine exists and its package is installed.

    Raises:
        DeviceError: no such engine.
        MissingPackageError: ``vllm`` is not installed.
    """
    check_choice("engine", engine, ENGINES)
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise MissingPackageError(
            "engine vllm",
            found="no package vllm",
            expected="this package, to run Stage 4",
            fix=f"run: {install_command('unfuse[vllm]')}",
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, dtype and engine of a model, as the user names them.

    Raises:
        DeviceError: no such device, dtype or engine.
        MissingPackageError: the engine's package is not installed.
    """

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``"""
    dtype: str = "auto"
    """``auto``, ``bfloat16``, ``float16`` or ``float32``"""
    engine: str = "auto"
    """``auto``, ``eager``, ``graphed`` or ``vllm``"""

    def __post_init__(self) -> None:
        check_device(self.device)
        check_choice("dtype", self.dtype, DTYPES)
        check_engine(self.engine)

    def load(self, name: str, speculation: SpeculationSettings | None = None) -> StagedModel:
        """Load a model, by default without a drafter; see ``load``."""
        return _load(name, self, speculation or SpeculationSettings(method="off"))


def load(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    speculate: str = "auto",
    draft_tokens: int | None = None,
    history: str | Path | None = None,
) -> StagedModel:
    """Load a model with stages that can be called separately.

    Args:
        name: a checkpoint folder, a hub name, ``demo``, or ``random:`` and one of ``eventgpt-7b``, ``llava-1.5-7b``,
            ``video-llava-7b`` (real size, random weights), ``llava-tiny``, ``video-llava-tiny``.
        device: ``auto`` is CUDA if there is one.
        dtype: ``auto`` is bfloat16 on CUDA and float32 on the CPU.
        engine: ``eager``, ``graphed`` or ``vllm`` (CUDA, models of LLaMA's kind), or ``auto``: ``graphed`` on CUDA.
        speculate: where ``generate`` and ``stream`` draft tokens from: ``history`` (the answers before), ``ngram`` (the
            prompt and the answer so far), ``off``, or ``auto``: ``history`` where drafts make the engine faster. The
            answers are the same.
        draft_tokens: most drafted tokens of a decode pass, 1 to 15; by default as many as pay.
        history: file with the answers of earlier runs, which is written by ``close``.

    Raises:
        CheckpointError: no such model, or an incomplete one.
        DeviceError: no such device, dtype or engine here.
        InputError: no such method, or a history of another model.
        MissingPackageError: the engine's package is not installed.
    """
    speculation = SpeculationSettings(
        method=speculate, draft_tokens=draft_tokens, history=None if history is None else Path(history)
    )
    return _load(name, Placement(device, dtype, engine), speculation)


def _load(name: str, placement: Placement, speculation: SpeculationSettings) -> StagedModel:
    ref = check_model(name)
    torch_device, torch_dtype = resolve_placement(placement.device, placement.dtype)

    from unfuse.drafters import pick_drafter
    from unfuse.engine_choice import pick_engine
    from unfuse.staged_model import StagedModel

    adapter, settings = _adapter(ref, torch_device, torch_dtype)
    engine, notes = pick_engine(placement.engine, adapter)
    drafter, more = pick_drafter(speculation, adapter, engine)
    model = StagedModel(name, adapter, engine, (*notes, *more), drafter)
    model.settings_sha256 = settings
    return model


def open_preprocessor(name: str, dtype: str) -> Preprocessor:
    """Open the preprocessor of a model, without its weights, for a process of its own.

    Args:
        name: as for ``load``.
        dtype: dtype of the model: ``bfloat16``, ``float16`` or ``float32``.

    Raises:
        CheckpointError: no such model, or its config, tokenizer or pixel settings cannot be read.
    """
    import torch

    checkpoint = _checkpoint(check_model(name))
    loader, precision = _family_loader(checkpoint.model_type), _torch_dtype(dtype, torch.device("cpu"))
    if checkpoint.folder is None:
        return loader.random_preprocessor(name.removeprefix(RANDOM), precision)
    return loader.preprocessor_of_folder(checkpoint.folder, precision)


def _adapter(ref: ModelRef, device: torch.device, dtype: torch.dtype) -> tuple[Adapter, str]:
    """Return the adapter of a model, and the hash of its settings; empty for random weights.

    Raises:
        CheckpointError: a file of settings changed while the model was loaded.
    """
    from unfuse.models.fingerprint import settings_sha256

    checkpoint = _checkpoint(ref)
    loader = _family_loader(checkpoint.model_type)
    if checkpoint.folder is None:
        return loader.load_random(ref.name.removeprefix(RANDOM), device, dtype), ""
    settings = settings_sha256(checkpoint.folder)
    adapter = loader.load_folder(checkpoint.folder, device, dtype, checkpoint.notes)
    if settings_sha256(checkpoint.folder) != settings:
        raise CheckpointError(
            str(checkpoint.folder), found="files that changed as they were loaded", expected="a checkpoint at rest"
        )
    return adapter, settings


def _family_loader(model_type: str | None) -> FamilyLoader:
    """Return the module that builds adapters of a family."""
    if model_type == _EVENTGPT:
        from unfuse.adapters import eventgpt_loading

        return eventgpt_loading
    from unfuse.adapters import hf_loading

    return hf_loading


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """Files of a model on this machine."""

    folder: Path | None
    """Checkpoint folder; None for random weights."""
    model_type: str | None
    notes: tuple[str, ...] = ()


def _checkpoint(ref: ModelRef) -> _Checkpoint:
    """Find a model's folder; download it if it is on the hub."""
    if ref.kind == "demo":
        from unfuse.samples.demo import demo_checkpoint

        return _Checkpoint(
            demo_checkpoint(), ref.model_type, ("demo model: trained on simulated scenes, knows nothing else",)
        )
    if ref.kind == "folder":
        return _Checkpoint(Path(ref.name), ref.model_type)
    if ref.kind == "hub":
        folder = _downloaded(ref)
        return _Checkpoint(folder, _model_type(folder))
    return _Checkpoint(None, ref.model_type)


def _model_type(folder: Path) -> str:
    """Return the ``model_type`` of a checkpoint folder.

    Raises:
        CheckpointError: no config, or a model without a vision side.
    """
    config = folder / "config.json"
    if not config.is_file():
        raise CheckpointError(str(folder), found="no config.json", expected="a checkpoint folder")
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(config), found=f"malformed JSON ({error})", expected="a model config") from None
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if isinstance(found, str) and (found == _EVENTGPT or any(name in settings for name in _VISION_SIDES)):
        return found
    raise CheckpointError(
        str(config),
        found=f"model_type {found!r} without a vision_config",
        expected=f"{_EVENTGPT}, or a Hugging Face image-text or video-text model",
    )


def _downloaded(ref: ModelRef) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(ref.name, ignore_patterns=_NOT_NEEDED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(
            f"model {ref.name!r}",
            found=f"no such folder, and not on the hub ({type(error).__name__})",
            expected="a checkpoint folder or a hub name",
        ) from None


def resolve_placement(device: str, dtype: str) -> tuple[torch.device, torch.dtype]:
    """Return the device and dtype that ``load`` uses; ``auto`` depends on the machine.

    Raises:
        DeviceError: no such device or dtype.
    """
    check_device(device)
    check_choice("dtype", dtype, DTYPES)
    torch_device = _torch_device(device)
    return torch_device, _torch_dtype(dtype, torch_device)


def _torch_device(device: str) -> torch.device:
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise DeviceError(
                f"device {device!r}",
                found=f"{count} CUDA devices",
                expected="an existing device",
                fix="use --device cpu",
            )
    return found


def _torch_dtype(dtype: str, device: torch.device) -> torch.dtype:
    import torch

    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    found: torch.dtype = getattr(torch, dtype)
    return found
