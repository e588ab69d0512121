"""The public calls that span several parts: ``unfuse.bench``, ``unfuse.run`` and ``unfuse.verify``.

Each verb has one implementation, in a module of its own here: it checks all input and makes a job before anything is
loaded, and then runs the job. The command line parses options into the same jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unfuse.api.answering import AnsweringOptions, prepare_run, run_answers
from unfuse.api.benchmarking import BenchOptions, prepare_bench, run_bench
from unfuse.api.verifying import VERIFY_TOKENS, VerifyOptions, prepare_verify, run_verify
from unfuse.benchmarking import BenchRun, ComparisonRun
from unfuse.loading import DEMO, Placement
from unfuse.samples import Dataset, Sample
from unfuse.staged_model import StagedModel

if TYPE_CHECKING:
    from unfuse.batch_inference.job import AnswersRun
    from unfuse.records.answers_file import AnswerRecord
    from unfuse.verification import Verification


def bench(
    models: str | StagedModel | Sequence[str | StagedModel] = DEMO,
    dataset: str | Path | Dataset | None = None,
    *,
    protocol: str = "decoupled",
    max_samples: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    **settings: Any,
) -> BenchRun | ComparisonRun:
    """Measure one model's stages on a dataset, or compare several models on the same samples.

    Args:
        models: a name or a loaded model, or several; names are loaded one at a time.
        dataset: a folder in the instruction-set layout, or a ``Dataset``; the demo recordings by default.
        protocol: ``decoupled``, ``fused``, ``hooked``, ``reencode`` or ``all``.
        max_samples: only the first so many samples.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.
        output: run folder that is written as the run goes on; None keeps the run in memory.
        resume: continue the run in ``output``.
        **settings: fields of ``BenchSettings``.

    Returns:
        One run for one model and protocol; a comparison for several.

    Raises:
        InputError: anything wrong with the model, the dataset or an option, before a model is loaded.
        RunFolderError: the folder is taken, or belongs to another run.
    """
    options = BenchOptions(
        dataset=dataset, protocol=protocol, max_samples=max_samples, placement=Placement(device, dtype, engine),
        output=output, resume=resume, settings=settings,
    )  # fmt: skip
    return run_bench(prepare_bench([models] if isinstance(models, (str, StagedModel)) else list(models), options))


def run(
    model: str | StagedModel = DEMO,
    dataset: str | Path | Dataset | None = None,
    *,
    questions: Sequence[str] | None = None,
    max_samples: int | None = None,
    device: str = "auto",
    devices: str | None = None,
    dtype: str = "auto",
    engine: str = "auto",
    output: str | Path | None = None,
    resume: bool = False,
    ray: str | None = None,
    ray_pools: str | None = None,
    on_answer: Callable[[AnswerRecord], None] | None = None,
    **settings: Any,
) -> AnswersRun:
    """Answer a whole dataset as fast as the hardware allows.

    Rows with the same media are one scene: loaded, preprocessed and encoded once.

    Args:
        model: a name or a loaded model.
        dataset: a folder in the instruction-set layout, or a ``Dataset``; the demo recordings by default.
        questions: asked of every row instead of its own question, and filed under ``<sample_id>#<n>``.
        max_samples: only the first so many rows.
        devices: instead of ``device``: ``auto`` for all GPUs of this host, a number of them, or names with commas
            between; more than one get a process each, and the model must be a name.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.
        output: run folder, written as the run goes on; default: ``runs/<time>-<model>-answers``.
        resume: continue the run in ``output``; samples that failed there are tried again.
        ray: run on a Ray cluster, and load the model there by its name: ``local`` for one on this machine, ``auto``
            or ``HOST:PORT``.
        ray_pools: actors of each stage there, as ``load=4,preprocess=2-8,encode=1,answer=1``.
        on_answer: called with every answer once it is on the disk, by another thread.
        **settings: fields of ``RunSettings``.

    Returns:
        Counts and rates; the answers are read from the folder, for they may be many.

    Raises:
        InputError: anything wrong with the model, the rows or an option, before a model is loaded.
        RunFolderError: the folder is taken, or belongs to another run.
    """
    options = AnsweringOptions(
        dataset=dataset, questions=questions, max_samples=max_samples, placement=Placement(device, dtype, engine),
        devices=devices, output=output, resume=resume, ray=ray, ray_pools=ray_pools, settings=settings,
    )  # fmt: skip
    return run_answers(prepare_run(model, options), on_answer=on_answer)


def verify(
    model: str | StagedModel,
    sample: Sample | None = None,
    *,
    golden: str | Path | None = None,
    max_new_tokens: int = VERIFY_TOKENS,
    device: str = "auto",
    dtype: str = "auto",
    engine: str = "auto",
) -> Verification:
    """Check that the stages compute the output of the model's own ``generate``.

    Args:
        model: a name, or a loaded model.
        sample: the sample to check on; a demo recording by default.
        golden: folder of reference outputs of this checkpoint.
        max_new_tokens: tokens compared.
        device: as for ``unfuse.load``.
        dtype: as for ``unfuse.load``.
        engine: as for ``unfuse.load``.

    Raises:
        InputError: anything wrong with the model, the sample or an option, before a model is loaded.
    """
    options = VerifyOptions(
        dataset=None if sample is None else Dataset(name=sample.sample_id, samples=(sample,)),
        golden=golden,
        max_new_tokens=max_new_tokens,
        placement=Placement(device, dtype, engine),
    )
    return run_verify(prepare_verify(model, options))
