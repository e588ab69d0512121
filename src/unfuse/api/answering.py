"""``run``: check all input before a dataset is answered."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfuse.api.defaults import check_resume, default_tokens, open_dataset
from unfuse.batch_inference.cluster.settings import RaySettings, ray_settings
from unfuse.errors import DeviceError
from unfuse.loading import Placement, check_devices, check_model
from unfuse.records import read_manifest, refuse_occupied
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel

if TYPE_CHECKING:
    from unfuse.batch_inference.job import AnswersRun, OnAnswer, OnReady, RunJob


@dataclass(frozen=True, kw_only=True, slots=True)
class AnsweringOptions:
    """Options of a run, as for ``unfuse.run``."""

    dataset: str | Path | Dataset | None = None
    questions: Sequence[str] | None = None
    max_samples: int | None = None
    placement: Placement = field(default_factory=Placement)
    devices: str | None = None
    output: str | Path | None = None
    resume: bool = False
    ray: str | None = None
    ray_pools: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``RunSettings``."""


def prepare_run(model: str | StagedModel, options: AnsweringOptions | None = None) -> RunJob:
    """Check all input of a run; load nothing.

    Args:
        model: a name, or a loaded model.
        options: the options; each has a default.

    Raises:
        InputError: anything wrong with the model, the rows or an option.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    given = options or AnsweringOptions()
    name = model.name if isinstance(model, StagedModel) else model
    if not isinstance(model, StagedModel):
        check_model(model)
    if given.devices is not None:
        if given.placement.device != "auto":
            found = f"device {given.placement.device} beside it"
            raise DeviceError("devices", found=found, expected="one of the two")
        check_devices(given.devices)
    cluster = _cluster(given)
    folder = answers_folder(name, given.output, resume=given.resume)
    data = open_dataset(given.dataset, given.max_samples)
    settings = dict(given.settings)
    if settings.get("max_new_tokens") is None:
        settings["max_new_tokens"] = default_tokens(name)

    # These import torch (seconds), so wrong input is reported before.
    from unfuse.batch_inference.devices import find_devices
    from unfuse.batch_inference.job import RunJob, RunSettings, Work

    return RunJob(
        model=model,
        work=Work(data, given.questions),
        settings=RunSettings(**settings),
        placement=given.placement,
        devices=() if given.devices is None else find_devices(given.devices),
        ray=cluster,
        output=folder,
        resume=given.resume,
    )


def _cluster(options: AnsweringOptions) -> RaySettings | None:
    """Return the Ray cluster, or None; refuse options that mean nothing on a cluster."""
    others = {
        "workers": options.settings.get("workers"),
        "scene-seconds": options.settings.get("scene_seconds"),
        "devices": options.devices,
        "store": options.settings.get("store"),
    }
    return ray_settings(options.ray, options.ray_pools, others)


def run_answers(job: RunJob, *, on_ready: OnReady | None = None, on_answer: OnAnswer | None = None) -> AnswersRun:
    """Run the job through ``answer_dataset``; this imports torch."""
    from unfuse.batch_inference.job import answer_dataset

    return answer_dataset(job, on_ready=on_ready, on_answer=on_answer)


def answers_folder(model: str, output: str | Path | None, *, resume: bool) -> Path:
    """Return the run folder: ``output``, or a new name under ``runs``.

    Raises:
        InputError: a run is to be continued, but no folder is given.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    check_resume(output, resume=resume)
    if output is None:
        output = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{Path(model).name.replace(':', '-')}-answers"
    folder = Path(output)
    if resume:
        read_manifest(folder)
    else:
        refuse_occupied(folder)
    return folder
