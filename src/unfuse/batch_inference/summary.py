"""Summary of a finished run: counts, rates and times."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from unfuse.batch_inference.times import DEVICE_STAGES, WORKER_STAGES, Bottleneck, PoolUse, Times, bottleneck
from unfuse.records.schema import SCHEMA_VERSION

SHARES: Final = {
    "samples_per_s": "Answers of this process by its wall time.",
    "tokens_per_s": "New tokens of this process by its wall time.",
    "workers_busy": "Share of the workers' time that was load and preprocess.",
    "device_busy": "Share of the devices' time that was encode, prefill and decode.",
    "write_busy": "Share of the time in which answers were being written.",
    "store_busy": "Share of the time in which scenes were being put into the store.",
    "room_wait": "Share of the workers' time in which they waited for room.",
    "scene_wait": "Share of the devices' time in which they waited for scenes.",
}
"""Derived values of ``summary.json``, beside the fields below."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSummary:
    """``summary.json``."""

    samples: int
    """Questions of the run."""
    ok: int
    failed: int
    earlier: int
    """Questions answered before this process continued the run."""
    output_tokens: int
    """New tokens of the answers of this process."""
    times: Times
    """Times of this process."""
    scenes: int
    """Media that this process loaded or found in the store; again for every 256 questions about them."""
    capacity: int
    """Questions answered at the same time, on each device."""
    most_held: int | None
    """Largest number of started and unanswered questions on any device; None on a cluster."""
    retried: int = 0
    """Questions that had failed before this process continued the run."""
    scenes_found: int = 0
    """Scenes found in the store."""
    not_kept: str | None = None
    """Reason why a scene was last not written to the store."""
    worker_deaths: int = 0
    device_deaths: tuple[str, ...] = ()
    pools: tuple[PoolUse, ...] = ()
    """Actors of each stage, on a cluster."""

    @property
    def answered(self) -> int:
        """Questions answered by this process."""
        return self.ok + self.failed - self.earlier

    @property
    def samples_per_s(self) -> float:
        """Answers of this process by its wall time."""
        return self.answered / self.times.wall_s if self.times.wall_s else 0.0

    @property
    def tokens_per_s(self) -> float:
        """New tokens of this process by its wall time."""
        return self.output_tokens / self.times.wall_s if self.times.wall_s else 0.0

    @property
    def bottleneck(self) -> Bottleneck:
        """Bottleneck of the run."""
        return bottleneck(self.times, self.pools)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: the fields and the derived values."""
        values = {name: getattr(self if hasattr(self, name) else self.times, name) for name in SHARES}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), **values, "bottleneck": asdict(self.bottleneck)}

    def lines(self) -> list[str]:
        """Return sentences for a reader."""
        times = self.times
        counted = f"Samples: {self.ok} ok, {self.failed} failed"
        if self.earlier:
            counted += f", {self.earlier} of them answered before"
        lines = [f"{counted}."]
        if self.retried:
            lines.append(f"Tried again: {_count(self.retried, 'sample')} that had failed.")
        if not self.answered:
            return [*lines, "Nothing was left to do."]
        lines.append(
            f"{self.answered} answers and {self.output_tokens} tokens in {times.wall_s:.2f} s: "
            f"{self.samples_per_s:.2f} samples/s, {self.tokens_per_s:.0f} tokens/s, files to answers."
        )
        lines += self._busy_lines()
        lines.append(self.bottleneck.line(times))
        if self.scenes_found or times.store_s:
            rest = self.scenes - self.scenes_found
            encoded = f"; {rest} encoded: the store had no such scene of this model" if rest else ", not encoded again"
            lines.append(f"Store: {self.scenes_found} of {_count(self.scenes, 'scene')} found{encoded}.")
        if self.not_kept:
            lines.append(f"Warning: not every scene is stored: {self.not_kept}")
        if self.worker_deaths:
            lines.append(f"Warning: {self.worker_deaths} worker processes died and were replaced.")
        lines += [f"Warning: {death}" for death in self.device_deaths]
        if self.device_deaths:
            lines.append("Warning: how busy a device was before it was lost is not known, and not in the times above.")
        return lines

    def _busy_lines(self) -> list[str]:
        times = self.times
        if self.pools:
            uses = (
                f"{use.stage} {use.busy_s:.2f} s ({_count(use.actors, 'actor')}, {use.busy:.0%})" for use in self.pools
            )
            return [f"Busy: {', '.join(uses)}; writing {times.write_s:.2f} s."]
        workers, devices = _count(times.workers, "worker"), _count(times.devices, "device")
        return [
            f"Busy: {_busy(times, WORKER_STAGES)} ({workers}); {_busy(times, DEVICE_STAGES)} ({devices}); "
            f"writing {times.write_s:.2f} s{f', keeping scenes {times.store_s:.2f} s' if times.store_s else ''}.",
            f"Waiting: workers {times.room_wait_s:.2f} s for room, device {times.scene_wait_s:.2f} s for scenes.",
        ]


def _busy(times: Times, stages: tuple[str, ...]) -> str:
    return ", ".join(f"{stage} {getattr(times, f'{stage}_s'):.2f} s" for stage in stages)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)
