"""Train the demo model from scratch to the checkpoint folder that ships; the same command resumes an interrupted call.

python -m training.train OUT
"""

from __future__ import annotations

import json
import math
import subprocess
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import torch
from torch.utils.data import DataLoader, Subset

from training.architecture import TOWER, write_layout
from training.exam import answer_accuracy, head_accuracy
from training.learner import Learner
from training.pixels import augment
from training.scenes import HELD_OUT, TRAINING_SEEDS, VALIDATION_SEEDS, Pool, make_pool
from training.turns import Steps, Tokens
from unfuse.samples.demo import tokenizer_model

_STATE_EVERY: Final = 500
_EXAM_EVERY: Final = 2000
_LOG_EVERY: Final = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Settings that the weights depend on, besides the code."""

    seed: int = 0
    scenes: int = 49_152
    """Number of different training scenes."""
    steps: int = 8_000
    scenes_a_step: int = 192
    row_length: int = 320
    """Tokens of a scene's row: the prompt's beginning once, then as many questions with answers as fit."""
    learning_rate: float = 1e-3
    warm_up: int = 300
    weight_decay: float = 0.05
    heads: float = 0.5
    """Weight of the auxiliary losses."""
    one_frame: bool = False
    """Negative control: the middle frame five times, so that no motion is visible."""


_DEFAULT: Final = Recipe()


class Log:
    """Writes entries to ``log.jsonl`` and to the terminal."""

    def __init__(self, path: Path):
        self._path = path

    def __call__(self, **entry: Any) -> None:
        """Append one entry."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        click.echo(" ".join(f"{name}={value}" for name, value in entry.items()))


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the learning rate: linear warm-up, then half a cosine down to 0."""
    if step < recipe.warm_up:
        return recipe.learning_rate * (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(recipe.steps - recipe.warm_up, 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(out: Path, recipe: Recipe, device: torch.device, workers: int, data: Path | None = None) -> Path:
    """Train, or continue an interrupted call.

    Args:
        out: folder of the checkpoint, the state and the log.
        recipe: settings that the weights depend on.
        device: device of the training and of the simulator.
        workers: processes that draw questions.
        data: folder of the simulated scenes; by default in ``out``.

    Returns:
        The checkpoint's folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    log = Log(out / "log.jsonl")
    log(event="begin", recipe=asdict(recipe), commit=_commit(), device=_name(device), torch=torch.__version__)
    checkpoint = write_layout(out, tokenizer_model())
    scenes = data or out / "scenes"

    def log_scenes(line: str) -> None:
        log(event="scenes", note=line)

    held_out = make_pool(scenes, range(VALIDATION_SEEDS, VALIDATION_SEEDS + HELD_OUT), device, log_scenes)
    pool = make_pool(scenes, range(TRAINING_SEEDS, TRAINING_SEEDS + recipe.scenes), device, log_scenes)
    torch.manual_seed(recipe.seed)
    preprocessor = json.loads((out / TOWER / "preprocessor_config.json").read_text())
    learner = Learner(checkpoint, preprocessor, one_frame=recipe.one_frame).to(device)
    optimiser = _optimiser(learner, recipe, device)
    if device.type == "cuda":
        learner.compile_layers()
    trainer = Trainer(recipe, learner, optimiser, pool, held_out, log, out / "state.pt")
    done = trainer.restore()
    if done:
        log(event="resumed", step=done)
    tokens = Tokens(checkpoint)
    trainer.run(_batches(recipe, checkpoint, pool, done, workers), done)
    log(event="exam", step=recipe.steps, heads=head_accuracy(learner, held_out, device))
    log(event="answers", step=recipe.steps, **answer_accuracy(learner, held_out, tokens, device))
    learner.model.to(torch.bfloat16).save_pretrained(checkpoint)
    write_layout(out, tokenizer_model())  # the published layout again, because saving changed its files
    log(event="end", step=recipe.steps, checkpoint=checkpoint.name)
    return checkpoint


def _optimiser(learner: Learner, recipe: Recipe, device: torch.device) -> torch.optim.Optimizer:
    """Return AdamW without weight decay of norms and biases."""
    matrices = [p for p in learner.parameters() if p.ndim > 1]
    vectors = [p for p in learner.parameters() if p.ndim <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
        fused=device.type == "cuda",
    )


def _batches(
    recipe: Recipe, checkpoint: Path, pool: Pool, done: int, workers: int
) -> DataLoader[dict[str, torch.Tensor]]:
    """Return the batches of the steps after ``done``."""
    steps = Steps(
        checkpoint,
        pool.seeds,
        scenes=min(recipe.scenes_a_step, recipe.scenes),
        length=recipe.row_length,
        steps=recipe.steps,
        seed=recipe.seed,
    )
    rest = Subset(steps, range(done, recipe.steps))
    return DataLoader(rest, batch_size=None, num_workers=workers, pin_memory=pool.pixels.device.type == "cuda")


@dataclass(frozen=True, slots=True)
class Trainer:
    """Optimises the learner, and saves its state from time to time."""

    recipe: Recipe
    learner: Learner
    optimiser: torch.optim.Optimizer
    pool: Pool
    held_out: Pool
    log: Log
    state: Path
    """File of learner, optimiser and step."""

    def run(self, batches: Iterable[dict[str, torch.Tensor]], done: int) -> None:
        """Take the steps after ``done``, one a batch."""
        device = self.pool.pixels.device
        start = time.perf_counter()
        for step, cpu in enumerate(batches, start=done):
            losses = self._step(step, {name: tensor.to(device, non_blocking=True) for name, tensor in cpu.items()})
            now = step + 1
            last = now == self.recipe.steps
            if now % _LOG_EVERY == 0 or last:
                values = {name: round(float(loss.detach()), 4) for name, loss in losses.items()}
                self.log(event="step", step=now, seconds=round(time.perf_counter() - start, 1), **values)
            if now % _STATE_EVERY == 0 or last:
                self._save(now)
            if now % _EXAM_EVERY == 0 and not last:
                self.log(event="exam", step=now, heads=head_accuracy(self.learner, self.held_out, device))

    def _step(self, step: int, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Take one step; return the losses by name."""
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.recipe, step)
        # bfloat16 is fast on a GPU and slow on a CPU; a smoke run on a CPU needs no reduced precision.
        device = self.pool.pixels.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            pixels = augment(self.pool.pixels[batch["scene"]], batch["mirror"], batch["inverse"])
            losses: dict[str, torch.Tensor] = self.learner(pixels, batch)
        total = losses["language"] + self.recipe.heads * (losses["facts"] + losses["tracks"])
        self.optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.learner.parameters(), 1.0)
        self.optimiser.step()
        return losses

    def _save(self, step: int) -> None:
        partial = self.state.with_suffix(".partial")
        state = {"step": step, "learner": self.learner.state_dict(), "optimiser": self.optimiser.state_dict()}
        torch.save(state, partial)
        partial.rename(self.state)

    def restore(self) -> int:
        """Load the saved state, if any; return the number of steps done."""
        if not self.state.is_file():
            return 0
        state = torch.load(self.state, map_location=self.pool.pixels.device, weights_only=True)
        self.learner.load_state_dict(state["learner"])
        self.optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    found = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
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
def main(  # noqa: PLR0913  # click passes one argument per option
    out: Path, steps: int, scenes: int, seed: int, one_frame: bool, data: Path | None, device: str, workers: int
) -> None:
    """Train the demo model into the folder OUT; a second call continues an interrupted one."""
    recipe = Recipe(seed=seed, steps=steps, scenes=scenes, one_frame=one_frame)
    train(out, recipe, torch.device(device), workers, data)


if __name__ == "__main__":
    main()
