"""Options of a benchmark, checked when they are made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from unfuse.errors import InputError
from unfuse.speculation.settings import SpeculationSettings
from unfuse.stages import Sampling


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchSettings:
    """Options of one run; all of them are written to ``run.json``."""

    max_new_tokens: int = 512
    output_length: int | None = None
    """Exact number of new tokens of every sample (equal work); None stops naturally."""
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    num_warmups: int = 2
    """Warm-up repeats at least, per input shape."""
    noise_repeats: int = 5
    """Further repeats of the first sample: only they separate noise from workload."""
    balance_seconds: float = 15.0
    """Time that more of these repeats may take until the balance of the stages is known to half a percent; a repeat
    that has started is finished."""
    reuse: bool = False
    """Whether a KV prefix may be reused between samples."""
    energy_seconds: float = 2.0
    """Time that each stage is repeated for its energy, at least; 0 measures none."""
    profile: bool = False
    """Whether one more sample is run under torch's profiler, after everything that is measured."""
    strict: bool = False
    """Whether other work on the machine refuses a run, or makes it invalid if the work starts later."""

    speculate: str = "off"
    """Drafter of the next tokens, see ``unfuse.load``."""
    draft_tokens: int | None = None
    """Most drafted tokens of a decode pass; None drafts as many as pay."""
    history: str | Path | None = None
    """File of earlier answers that the drafter begins with; a benchmark does not write the file."""

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max_new_tokens", self.max_new_tokens, 1),
            ("output_length", self.output_length, 1),
            ("num_warmups", self.num_warmups, 0),
            ("noise_repeats", self.noise_repeats, 0),
            ("balance_seconds", self.balance_seconds, 0),
            ("energy_seconds", self.energy_seconds, 0),
        ):
            if value is not None and value < least:
                raise InputError(name.replace("_", "-"), found=value, expected=f"at least {least}")
        Sampling(temperature=self.temperature, top_p=self.top_p)  # checks both
        history = None if self.history is None else Path(self.history)
        SpeculationSettings(method=self.speculate, draft_tokens=self.draft_tokens, history=history)
        object.__setattr__(self, "history", history)

    @property
    def sampling(self) -> Sampling:
        """Sampling options for the engine."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            ignore_eos=self.output_length is not None,
        )

    @property
    def speculation(self) -> SpeculationSettings:
        """Options of the drafter."""
        history = None if self.history is None else Path(self.history)
        return SpeculationSettings(method=self.speculate, draft_tokens=self.draft_tokens, history=history)

    def to_config(self) -> dict[str, Any]:
        """Return the options for ``run.json``. Options of speculation are left out if it is off."""
        config = {**asdict(self), "history": None if self.history is None else str(self.history)}
        if self.speculate == "off":
            for name in ("speculate", "draft_tokens", "history"):
                del config[name]
        return config

    @property
    def token_limit(self) -> int:
        """New tokens at most."""
        return self.max_new_tokens if self.output_length is None else self.output_length
