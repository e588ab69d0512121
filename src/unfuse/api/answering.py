"""``run``: check everything, then answer a whole dataset."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfuse.api.data import check_resume, default_tokens, open_dataset
from unfuse.errors import DeviceError
from unfuse.loading import Placement, check_devices, check_model
from unfuse.runs import read_manifest, refuse_occupied
from unfuse.samples import Dataset
from unfuse.staged_model import StagedModel
from unfuse.throughput.cluster.settings import RaySettings, ray_settings

if TYPE_CHECKING:
    from unfuse.runs.answers_file import AnswerRecord
    from unfuse.throughput.device import DeviceFacts
    from unfuse.throughput.job import AnswersRun, RunSettings, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class RunJob:
    """A dataset to answer whose input has been checked."""

    model: str | StagedModel
    work: Work
    settings: RunSettings
    placement: Placement
    devices: tuple[str, ...]
    """A process each; empty where ``placement`` names the device."""
    ray: RaySettings | None
    folder: Path
    resume: bool


def prepare_run(
    model: str | StagedModel,
    dataset: str | Path | Dataset | None = None,
    *,
    questions: Sequence[str] | None = None,
    max_samples: int | None = None,
    placement: Placement | None = None,
    devices: str | None = None,
    output: str | Path | None = None,
    resume: bool = False,
    ray: tuple[str | None, str | None] = (None, None),
    settings: Mapping[str, Any] | None = None,
) -> RunJob:
    """Check all input of a run; loads nothing.

    Args:
        model: as for ``unfuse.run``.
        dataset: as for ``unfuse.run``.
        questions: as for ``unfuse.run``.
        max_samples: as for ``unfuse.run``.
        placement: where the model is loaded; automatic by default.
        devices: as for ``unfuse.run``.
        output: as for ``unfuse.run``.
        resume: as for ``unfuse.run``.
        ray: address of a cluster, and its pools, as for ``unfuse.run``.
        settings: fields of ``RunSettings``.

    Raises:
        InputError: anything wrong with the model, the rows or an option.
        RunFolderError: the folder is taken, or holds no run to continue.
    """
    name = model.name if isinstance(model, StagedModel) else model
    where, given = placement or Placement(), dict(settings or {})
    if not isinstance(model, StagedModel):
        check_model(model)
    if devices is not None:
        if where.device != "auto":
            raise DeviceError("devices", found=f"device {where.device} beside it", expected="one of the two")
        check_devices(devices)
    own = {"workers": given.get("workers"), "scene-seconds": given.get("scene_seconds")}
    cluster = ray_settings(*ray, own | {"devices": devices, "store": given.get("store")})
    folder = answers_folder(name, output, resume=resume)
    data = open_dataset(dataset, max_samples)
    if given.get("max_new_tokens") is None:
        given["max_new_tokens"] = default_tokens(name)

    # These import torch, which wrong input need not wait for.
    from unfuse.throughput.devices import find_devices
    from unfuse.throughput.job import RunSettings, Work

    return RunJob(
        model=model,
        work=Work(data, questions),
        settings=RunSettings(**given),
        placement=where,
        devices=() if devices is None else find_devices(devices),
        ray=cluster,
        folder=folder,
        resume=resume,
    )


def run_answers(
    job: RunJob,
    *,
    on_ready: Callable[[DeviceFacts, int], None] | None = None,
    on_answer: Callable[[AnswerRecord], None] | None = None,
) -> AnswersRun:
    """Load the model and answer every question.

    Args:
        job: from ``prepare_run``.
        on_ready: called with facts of the device and the number of questions, once the model is loaded.
        on_answer: called with every answer once it is on the disk, by another thread.
    """
    from unfuse.throughput.job import answer_dataset

    return answer_dataset(
        job.model, job.work, job.settings, output=job.folder, resume=job.resume, placement=job.placement,
        devices=job.devices, ray=job.ray, on_ready=on_ready, on_answer=on_answer,
    )  # fmt: skip


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
