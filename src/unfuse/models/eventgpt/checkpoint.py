"""Strict loading and saving: a missing or unexpected tensor is an error, and keys have their published names.

transformers only reports such a tensor and continues with random weights. It renames the tower's tensors while loading,
and renames them back while saving only if it has loaded them.
"""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.utils import logging

from unfuse.errors import CheckpointError
from unfuse.models.pretrained import refuse_kernels


class StrictLoading:
    """Mixin in front of ``PreTrainedModel``: ``from_pretrained`` raises an error if keys do not fit."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Load a checkpoint folder, ``.safetensors`` or ``.bin`` (weights-only), sharded or not.

        Raises:
            CheckpointError: a file is damaged, or a tensor is missing, unexpected or of another shape.
        """
        path = str(pretrained_model_name_or_path)
        wants_info = kwargs.pop("output_loading_info", False)
        # With True, transformers would run a custom_generate/generate.py of the folder.
        kwargs["trust_remote_code"] = False
        refuse_kernels(path)
        verbosity = logging.get_verbosity()
        # transformers logs a report with the content of the error below.
        logging.set_verbosity_error()
        try:
            model, info = super().from_pretrained(
                pretrained_model_name_or_path,
                *args,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                **kwargs,
            )
        except (SafetensorError, pickle.UnpicklingError, json.JSONDecodeError, EOFError) as error:
            raise CheckpointError(
                path,
                found=str(error).splitlines()[0],
                expected="undamaged weight files",
                fix="fetch them again",
            ) from None
        finally:
            logging.set_verbosity(verbosity)
        _refuse_misfits(path, info)
        result: Any = (model, info) if wants_info else model
        return result

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Save under the published names, also a model that was built from a config or loaded under other names."""
        conversions = "_weight_conversions"
        original = getattr(self, conversions, None)
        if not original:
            setattr(self, conversions, get_model_conversion_mapping(self, add_legacy=False))
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            setattr(self, conversions, original)


def _refuse_misfits(path: str, info: dict[str, Any]) -> None:
    found = [
        f"{len(keys)} {kind} ({', '.join(keys)})"
        for kind in ("missing", "unexpected")
        if (keys := sorted(info.get(f"{kind}_keys") or ()))
    ]
    if mismatched := info.get("mismatched_keys"):
        shapes = (f"{key} is {list(found_shape)}, not {list(shape)}" for key, found_shape, shape in sorted(mismatched))
        found.append("another shape for " + ", ".join(shapes))
    if errors := info.get("error_msgs"):
        found.append(str(errors))
    if found:
        raise CheckpointError(
            path,
            found="; ".join(found),
            expected="every tensor of the architecture and no other",
            fix="the folder is incomplete, or its config.json belongs to other weights",
        )


def require_folder(path: str | Path) -> Path:
    """Return the path of a checkpoint folder after a quick check.

    Raises:
        CheckpointError: the folder is missing, or is no checkpoint.
    """
    folder = Path(path)
    if not folder.exists():
        raise CheckpointError(str(path), found="no such folder", expected="a checkpoint folder or a hub name")
    if not (folder / "config.json").is_file():
        raise CheckpointError(str(path), found="no config.json", expected="a checkpoint folder")
    return folder
