"""Trains the demo model, from nothing to the checkpoint folder that ships: one command, resumed by running it again.

python -m training.train OUT
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch.utils.data import DataLoader, Subset

from training.architecture import TOWER, write_layout
from training.exam import answer_accuracy, head_accuracy
from training.learner import Learner
from training.pixels import varied
from training.scenes import HELD_OUT, TRAINING_SEEDS, VALIDATION_SEEDS, Pool, make_pool
from training.turns import Steps, Tokens
from unfuse.samples.demo import tokenizer_model

_STATE_EVERY: Final = 500
_EXAM_EVERY: Final = 2000
_LOG_EVERY: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that the weights depend on, besides the code."""

    seed: int = 0
    scenes: int = 49_152
    """Different scenes to learn from."""
    steps: int = 8_000
    scenes_a_step: int = 192
    row_length: int = 320
    """Tokens of a scene's row: the prompt's beginning once and as many questions with answers as fit."""
    learning_rate: float = 1e-3
    warm_up: int = 300
    weight_decay: float = 0.05
    heads: float = 0.5
    """Weight of the auxiliary losses."""
    one_frame: bool = False
    """A control: the middle frame five times, from which motion cannot be read."""


_DEFAULT: Final = Recipe()


class Log:
    """``log.jsonl``, and a line on the terminal."""

    def __init__(self, path: Path):
        self._path = path

    def __call__(self, **entry: Any) -> None:
        """Appends one entry."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        click.echo(" ".join(f"{name}={value}" for name, value in entry.items()))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to nothing."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(out: Path, recipe: Recipe, device: torch.device, workers: int, data: Path | None = None) -> Path:
    """Trains, or goes on where an earlier call was cut off.

    Args:
        out: folder of the checkpoint, the state and the log.
        recipe: what to do.
        device: where.
        workers: processes that draw questions.
        data: folder of the simulated scenes, if not in ``out``.

    Returns:
        The checkpoint's folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "log.jsonl")
    log(event="begin", recipe=asdict(recipe), commit=_commit(), device=_name(device), torch=torch.__version__)
    checkpoint = write_layout(out, tokenizer_model())
    scenes = data or out / "scenes"

    def told(line: str) -> None:
        log(event="scenes", note=line)

    held_out = make_pool(scenes, range(VALIDATION_SEEDS, VALIDATION_SEEDS + HELD_OUT), device, told)
    pool = make_pool(scenes, range(TRAINING_SEEDS, TRAINING_SEEDS + recipe.scenes), device, told)
    torch.manual_seed(recipe.seed)
    preprocessor = json.loads((out / TOWER / "preprocessor_config.json").read_text())
    learner = Learner(checkpoint, preprocessor, one_frame=recipe.one_frame).to(device)
    # Norms and biases do not decay.
    decays = [p for p in learner.parameters() if p.ndim > 1]
    stays = [p for p in learner.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decays, "weight_decay": recipe.weight_decay}, {"params": stays, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )
    if device.type == "cuda":
        learner.compile_layers()
    done = _restore(out / "state.pt", learner, optimiser, device)
    if done:
        log(event="resumed", step=done)
    tokens = Tokens(checkpoint)
    _learn(learner, optimiser, recipe, pool, held_out, tokens, done, log, out, checkpoint, workers)
    log(event="exam", step=recipe.steps, heads=head_accuracy(learner, held_out, device))
    log(event="answers", step=recipe.steps, **answer_accuracy(learner, held_out, tokens, device))
    learner.model.to(torch.bfloat16).save_pretrained(checkpoint)
    write_layout(out, tokenizer_model())  # the published layout again, where saving wrote more
    log(event="end", step=recipe.steps, checkpoint=checkpoint.name)
    return checkpoint


def _learn(
    learner: Learner,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    pool: Pool,
    held_out: Pool,
    tokens: Tokens,
    done: int,
    log: Log,
    out: Path,
    checkpoint: Path,
    workers: int,
) -> None:
    device = pool.pixels.device
    steps = Steps(
        checkpoint,
        pool.seeds,
        scenes=min(recipe.scenes_a_step, recipe.scenes),
        length=recipe.row_length,
        steps=recipe.steps,
        seed=recipe.seed,
    )
    loader = DataLoader(
        Subset(steps, range(done, recipe.steps)), batch_size=None, num_workers=workers, pin_memory=device.type == "cuda"
    )
    start = time.perf_counter()
    for step, cpu in enumerate(loader, start=done):
        batch = {name: tensor.to(device, non_blocking=True) for name, tensor in cpu.items()}
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(recipe, step)
        # bfloat16 is fast on a GPU and slow on a CPU, where a smoke run needs no reduced precision.
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            pixels = varied(pool.pixels[batch["scene"]], batch["mirror"], batch["inverse"])
            losses = learner(pixels, batch)
        total = losses["language"] + recipe.heads * (losses["facts"] + losses["tracks"])
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        optimiser.step()
        now = step + 1
        if now % _LOG_EVERY == 0 or now == recipe.steps:
            shown = {name: round(float(loss.detach()), 4) for name, loss in losses.items()}
            log(event="step", step=now, seconds=round(time.perf_counter() - start, 1), **shown)
        if now % _STATE_EVERY == 0 or now == recipe.steps:
            _keep(out / "state.pt", learner, optimiser, now)
        if now % _EXAM_EVERY == 0 and now < recipe.steps:
            log(event="exam", step=now, heads=head_accuracy(learner, held_out, device))


def _keep(path: Path, learner: Learner, optimiser: torch.optim.Optimizer, step: int) -> None:
    partial = path.with_suffix(".partial")
    torch.save({"step": step, "learner": learner.state_dict(), "optimiser": optimiser.state_dict()}, partial)
    partial.rename(path)


def _restore(path: Path, learner: Learner, optimiser: torch.optim.Optimizer, device: torch.device) -> int:
    """The step that is next."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location=device, weights_only=True)
    learner.load_state_dict(state["learner"])
    optimiser.load_state_dict(state["optimiser"])
    return int(state["step"])


def _commit() -> str:
    asked = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return found.stdout.strip() or "unknown"


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--steps", default=_DEFAULT.steps, show_default=True)
@click.option("--scenes", default=_DEFAULT.scenes, show_default=True)
@click.option("--seed", default=_DEFAULT.seed, show_default=True)
@click.option("--one-frame", is_flag=True, help="A control: the middle frame five times.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of simulated scenes, made where absent.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--workers", default=12, show_default=True)
def main(
    out: Path, steps: int, scenes: int, seed: int, one_frame: bool, data: Path | None, device: str, workers: int
) -> None:
    """Trains the demo model into the folder OUT; run again, it goes on where it was cut off."""
    recipe = Recipe(seed=seed, steps=steps, scenes=scenes, one_frame=one_frame)
    train(out, recipe, torch.device(device), workers, data)


if __name__ == "__main__":
    main()
