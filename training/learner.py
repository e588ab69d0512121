"""The model with auxiliary heads for training; they predict the scene's facts and are discarded afterwards.

The gradient of the language-model loss alone reaches the tower late, through every decoder layer. Two short paths are
added: from the five temporal tokens together to the scene's facts, and from each token alone to the positions of all
shapes in its frame.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from training.pixels import normalise
from training.scenes import FRAMES, HEADS
from unfuse.models.eventgpt import EventChatConfig, EventGPTForConditionalGeneration
from unfuse.models.pretrained import from_pretrained
from unfuse.samples.simulator import SHAPES

_TRACK_WEIGHT = 4.0


class Learner(nn.Module):
    """A new model of the layout's architecture, and the heads."""

    def __init__(self, checkpoint: Path, preprocessor: dict[str, list[float]], *, one_frame: bool = False):
        super().__init__()
        config = from_pretrained(EventChatConfig, checkpoint)
        config.name_or_path = str(checkpoint)  # the tower is looked up beside it
        # By transformers' annotations such a model has no `generate`.
        self.model: Any = EventGPTForConditionalGeneration(config)
        self.heads = nn.Sequential(
            _centred(FRAMES * config.hidden_size),
            nn.Linear(FRAMES * config.hidden_size, 512),
            nn.GELU(),
            nn.Linear(512, sum(classes for _, classes in HEADS)),
        )
        self.centre = _centred(config.hidden_size)
        self.tracks = nn.Linear(config.hidden_size, 4 * len(SHAPES))
        self._mean, self._std = preprocessor["image_mean"], preprocessor["image_std"]
        self._one_frame = one_frame

    def compile_layers(self) -> None:
        """Compile the layers: at this width, small operations take most of the time."""
        for layer in (*self.model.model.layers, *self.model.model.visual_tower.visual_tower.encoder.layers):
            layer.compile()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Encode uint8 pixels ``[B, F, 3, h, w]`` to features ``[B, N, H]``."""
        if self._one_frame:
            pixels = pixels[:, FRAMES // 2 : FRAMES // 2 + 1].expand_as(pixels)
        features: torch.Tensor = self.model.get_event_features(normalise(pixels, self._mean, self._std))
        return features

    def forward(self, pixels: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the losses by name."""
        features = self.features(pixels)
        loss: torch.Tensor = self.model(**self._rows(features, batch), labels=batch["labels"]).loss
        temporal = features[:, :FRAMES]
        scores = self.heads(temporal.flatten(1)).split([classes for _, classes in HEADS], 1)
        each = [functional.cross_entropy(s, t) for s, t in zip(scores, batch["classes"].T, strict=True)]
        facts = torch.stack(each).mean()
        return {"language": loss, "facts": facts, "tracks": self._track_loss(temporal, batch["tracks"])}

    def logits(self, features: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the logits of every position of the rows, ``[B, L, V]``."""
        logits: torch.Tensor = self.model(**self._rows(features, batch)).logits
        return logits

    def facts(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the class that each head chooses, ``[B, heads]``."""
        scores = self.heads(self.features(pixels)[:, :FRAMES].flatten(1))
        chosen: list[torch.Tensor] = [s.argmax(1) for s in scores.split([classes for _, classes in HEADS], 1)]
        return torch.stack(chosen, 1)

    def _rows(self, features: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Return inputs by which a question attends to the shared beginning and itself, not to others in its row."""
        turn = batch["turn"]
        visible = (turn[:, None, :] == turn[:, :, None]) | (turn[:, None, :] == 0)
        return {
            "input_ids": batch["input_ids"],
            "event_features": features,
            "attention_mask": visible.tril()[:, None],
            "position_ids": batch["position"],
            "use_cache": False,
        }

    def _track_loss(self, temporal: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the squared error of presence, and of centre and radius if a shape is present."""
        shape = (*targets.shape[:-1], len(SHAPES), 4)
        centred = self.centre(temporal.flatten(0, 1))
        found, targets = self.tracks(centred).float().view(shape), targets.view(shape)
        present = targets[..., :1]
        position: torch.Tensor = (present * (found[..., 1:] - targets[..., 1:]) ** 2).sum() / present.sum().clamp(1)
        presence: torch.Tensor = functional.mse_loss(found[..., :1], present)
        return presence + _TRACK_WEIGHT * position


def _centred(width: int) -> nn.BatchNorm1d:
    """Return a norm that removes the mean over scenes: at first it is fifty times their differences.

    No gradient then moves the mean. With such a gradient, features became constant within 200 steps at a learning rate
    of 1e-3, and stayed constant.
    """
    return nn.BatchNorm1d(width, eps=1e-10)
