"""``unfuse ask``: encode one scene once, and ask any number of questions about it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console

from unfuse.cli.options import open_store, placement_options, speculation_options, store_options, time_unit_option
from unfuse.errors import FileAccessError, MediaError, PromptError
from unfuse.events.time_units import TimeUnit
from unfuse.feature_store import FeatureStore
from unfuse.loading import DEMO, Placement, check_model
from unfuse.report import print_line, printable
from unfuse.speculation.drafter import SpeculationCounts
from unfuse.speculation.settings import SpeculationSettings
from unfuse.stages import DEFAULT_QUESTION, Generation


@click.command(short_help="Ask questions about one recording, encoded once.")
@click.option("--model", default=DEMO, help="Checkpoint folder, hub name, demo or random:SHAPE.")
@placement_options
@speculation_options
@store_options
@click.option("--max-new-tokens", type=int, default=None, help="Default: 512; 64 for the demo model.")
@click.option("--temperature", type=float, default=0.0, help="0 is greedy.")
@click.option("--seed", type=int, default=0, help="For sampled answers.")
@time_unit_option
@click.argument("events", required=False)
@click.argument("questions", nargs=-1)
def ask(
    model: str,
    placement: Placement,
    speculation: SpeculationSettings,
    store: Path | None,
    store_gib: float | None,
    max_new_tokens: int | None,
    temperature: float,
    seed: int,
    time_unit: TimeUnit | None,
    events: str | None,
    questions: tuple[str, ...],
) -> int:
    """Ask QUESTIONS about EVENTS: a recording, a video, a picture, or demo:N for a built-in recording.

    Recordings are .npy, .npz, DSEC's .h5, Prophesee's .raw and .dat, AEDAT4 or text. Without QUESTIONS, the model gets
    the benchmark's default question.
    """
    ref = check_model(model)

    from unfuse.samples import Dataset, Sample, clean_question
    from unfuse.samples.demo import demo_sample
    from unfuse.stages import Sampling

    sampling = Sampling(temperature=temperature, seed=seed)
    cleaned = [clean_question(question) for question in questions] or [DEFAULT_QUESTION]
    if max_new_tokens is not None and max_new_tokens < 1:
        raise PromptError("max-new-tokens", found=max_new_tokens, expected="at least 1")
    name = events if events is not None else "demo:0"
    sample = demo_sample(name) if name.startswith("demo:") else Sample.from_file(name)
    if ref.wants_events and not sample.has_events:
        _refuse(name, model)
    sample = replace(sample, time_unit=time_unit)
    data = Dataset(name=name, samples=(sample,))
    decided = data.check_media(events=ref.wants_events, video=not ref.wants_events)
    scenes = open_store(store, store_gib)

    from unfuse.api.defaults import default_tokens

    console = Console(highlight=False, soft_wrap=True)
    tokens = default_tokens(model) if max_new_tokens is None else max_new_tokens
    with placement.load(model, speculation) as loaded:
        print_line(console, f"{model} on {loaded.device}, asked about {name}")
        for note in (*loaded.notes, *decided):
            print_line(console, f"Note: {note}")
        started = time.perf_counter()
        features, hit = (loaded.encode(sample), False) if scenes is None else scenes.features(loaded, sample)
        how = "found in the store" if hit else "encoded once"
        print_line(
            console,
            f"Scene {how} in {time.perf_counter() - started:.2f} s, {features.tensor.shape[0]} positions.",
        )
        if scenes is not None and not hit:
            print_line(console, _stored(scenes))
        for question in cleaned:
            started = time.perf_counter()
            answer = loaded.generate(question, features, max_new_tokens=tokens, sampling=sampling)
            _print_answer(console, question, answer, time.perf_counter() - started)
    return 0


def _print_answer(console: Console, question: str, answer: Generation, seconds: float) -> None:
    print_line(console, f"\nQ: {question}")
    print_line(console, f"A: {printable(answer.text)}")
    print_line(
        console,
        f"   {answer.output_tokens} tokens in {seconds:.2f} s ({answer.stop_reason}); "
        f"{answer.reused_prefix_tokens} of {answer.prompt_tokens} prompt positions reused"
        f"{_passes(answer.speculation)}",
    )


def _passes(counts: SpeculationCounts | None) -> str:
    if counts is None:
        return ""
    return f"; {counts.decode_passes} passes, {counts.accepted_tokens} of {counts.draft_tokens} drafted tokens accepted"


def _refuse(name: str, model: str) -> NoReturn:
    path = Path(name)
    if not path.exists():
        raise FileAccessError(name, found="no such file", expected="a recording of events")
    found = "a folder" if path.is_dir() else "a picture or a video"
    raise MediaError(
        name, found=found, expected=f"a recording of events, the only input of {model}",
        fix="name a model of pictures or video with --model",
    )  # fmt: skip


def _stored(store: FeatureStore) -> str:
    """Return whether a scene that was encoded is now in the store."""
    counts = store.counts
    found = "Its entry was damaged and is replaced." if counts.damaged else "The store had no such scene of this model."
    outcome = f"Stored in {store.path}" if counts.stored else f"Not stored: {store.trouble}"
    return printable(f"{found} {outcome}.")
