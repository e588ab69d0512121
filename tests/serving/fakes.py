"""A model without weights: the interface that the loop, the scenes and the service need."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.started import PATIENCE_S
from unfuse.engines.batching import Request, TokenOutput
from unfuse.errors import DeviceError, FeaturesError
from unfuse.features import Features
from unfuse.stages import Loaded, Prompt, Provenance, Sampling

LOADED = Loaded(
    frames=[np.zeros((4, 4, 3), np.uint8)], media="event_data", media_sha256="0" * 64, question="What moves?"
)


def features_of(media_sha256: str) -> Features:
    """Return features with the provenance of these media."""
    tensor = torch.zeros(4, 2)
    return Features(
        tensor,
        Provenance(
            model_fingerprint="f" * 64, family="fake", media_sha256=media_sha256, num_frames=1, dtype="float32",
            shape=(4, 2),
        ),
    )  # fmt: skip


@dataclass(eq=False)
class FakeBatch:
    """Writes 0, 1, 2, ... for every request, as many as it may; the question decides what goes wrong."""

    capacity: int = 2
    step_s: float = 0.0
    busy_s: dict[str, float] = field(default_factory=lambda: {"prefill": 0.0, "decode": 0.0})
    running: dict[str, tuple[Request, int]] = field(default_factory=dict)
    aborted: list[str] = field(default_factory=list)
    most_together: int = 0
    threads: set[str] = field(default_factory=set)
    closed: bool = False
    gate: threading.Event = field(default_factory=threading.Event)
    """Unset holds every step."""
    broken: bool = False

    def __post_init__(self) -> None:
        self.gate.set()

    @property
    def unfinished(self) -> int:
        return len(self.running)

    def prepare(self) -> None:
        assert not self.running

    def add(self, requests: Sequence[Request]) -> None:
        self.threads.add(threading.current_thread().name)
        if any(request.max_new_tokens == 10**10 for request in requests):
            raise DeviceError("request", found="too many positions", expected="fewer")
        for request in requests:
            self.running[request.request_id] = request, 0
        assert len(self.running) <= self.capacity, "the loop knows the room"
        self.most_together = max(self.most_together, len(self.running))

    def step(self) -> list[TokenOutput]:
        self.threads.add(threading.current_thread().name)
        assert self.gate.wait(PATIENCE_S)
        time.sleep(self.step_s)
        if self.broken:
            raise RuntimeError("the device is lost")
        out = []
        for name, (request, count) in list(self.running.items()):
            last = count + 1 == request.max_new_tokens
            out.append(
                TokenOutput(
                    request_id=name, token_id=count, finished="length" if last else None, reused_prefix_tokens=3
                )
            )
            if last:
                del self.running[name]
            else:
                self.running[name] = request, count + 1
        return out

    def abort(self, request_id: str) -> None:
        if self.running.pop(request_id, None):
            self.aborted.append(request_id)

    def close(self) -> None:
        self.closed = True


class FakeModel:
    """A ``StagedModel`` by its methods."""

    def __init__(self, batch: FakeBatch | None = None):
        self.batch = batch or FakeBatch()
        self.encoded: list[str] = []
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.fingerprint = "f" * 64
        self.name, self.family, self.notes = "fake", "fake", ()
        self.engine = SimpleNamespace(name="fake")
        self.adapter = SimpleNamespace(
            decode_text=lambda ids: " ".join(map(str, ids)), family="eventgpt", takes="events", unsplittable=None
        )
        self.closed = False

    def continuous(self, capacity: int | None, *, interleave: bool) -> FakeBatch:
        assert interleave, "somebody waits for the next token"
        self.batch.capacity = capacity or self.batch.capacity
        return self.batch

    def preprocess(self, loaded: Loaded) -> Any:
        return SimpleNamespace(media_sha256=loaded.media_sha256)

    def encode(self, prepared: Any) -> Features:
        if prepared.media_sha256.startswith("bad"):
            raise FeaturesError("scene", found="a bad one", expected="a good one")
        if prepared.media_sha256.startswith("out of memory"):
            raise torch.OutOfMemoryError("too large")
        self.encoded.append(prepared.media_sha256)
        return features_of(prepared.media_sha256)

    def request(
        self, request_id: str, question: str, features: Features, *, max_new_tokens: int,
        sampling: Sampling | None = None, reuse: bool,
    ) -> Request:  # fmt: skip
        assert reuse
        if question == "bad":
            raise FeaturesError("question", found="a bad one", expected="a good one")
        if question == "odd":
            raise UnicodeError("cannot be tokenised")
        prompt = Prompt(inputs_embeds=torch.zeros(1, 7, 2))
        return Request(
            request_id=request_id, prompt=prompt, max_new_tokens=max_new_tokens, sampling=sampling or Sampling()
        )

    def close(self) -> None:
        self.closed = True
