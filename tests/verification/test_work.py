"""``work`` against models that hide, repeat or leave out work of a stage."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.verification.test_verification import EncodesTwice, ReEncodes, ReEncodesAside, staged
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.engines.eager import EagerEngine
from unfuse.features import Features
from unfuse.stages import Sampling
from unfuse.verification.checks import prepare_subject
from unfuse.verification.work import work

TOKENS = 4


class WithoutConvolutions(nn.Module):
    """A copy of the tower whose patch embedding is a matrix product."""

    def __init__(self, tower):
        super().__init__()
        self.tower = copy.deepcopy(tower)
        patch = self.tower.visual_tower.embeddings.patch_embedding
        weight, stride = patch.weight, patch.stride

        class Unfolded(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = weight

            def forward(self, pixels):
                columns = functional.unfold(pixels, weight.shape[-2:], stride=stride)
                rows, side = columns.transpose(1, 2) @ weight.flatten(1).t(), pixels.shape[-1] // stride[0]
                return rows.transpose(1, 2).unflatten(2, (side, side))

        self.tower.visual_tower.embeddings.patch_embedding = Unfolded()

    def forward(self, pixels):
        return self.tower(pixels)


class CopiedTower(EventGPTAdapter):
    """Runs a copy of the tower without convolutions while the prompt is built."""

    copied = cached = None

    def encode(self, prepared):
        self.cached = prepared.pixel_values
        return super().encode(prepared)

    def aside(self, pixels):
        self.copied = self.copied or (WithoutConvolutions(self.model.model.visual_tower),)
        with torch.no_grad():
            self.copied[0](pixels)

    def prompt(self, prepared, features, *, digest):
        self.aside(self.cached)
        return super().prompt(prepared, features, digest=digest)


class InAnotherThread(CopiedTower):
    """The same in a thread that is there before the stage."""

    pool = None

    def aside(self, pixels):
        self.pool = self.pool or ThreadPoolExecutor(1)
        self.pool.submit(super().aside, pixels).result()


class OneFrameAside(CopiedTower):
    """The same for one frame of five."""

    def aside(self, pixels):
        super().aside(pixels[:1])


class EncodesInPreprocess(EventGPTAdapter):
    """Encodes in ``preprocess``, so that ``encode`` looks fast."""

    ready = None

    def preprocess(self, loaded, question=None):
        prepared = super().preprocess(loaded, question)
        self.ready = super().encode(prepared)
        return prepared

    def encode(self, prepared):
        return self.ready


class EncodesInLoad(EventGPTAdapter):
    """Encodes in ``load``."""

    ready = None

    def load(self, sample):
        loaded = super().load(sample)
        self.ready = super().encode(super().preprocess(loaded))
        return loaded

    def encode(self, prepared):
        return self.ready


class AdaptorLater(EventGPTAdapter):
    """Leaves the adaptor to the prompt."""

    def encode(self, prepared):
        network = self.model.model
        adaptor, network.feature_adaptor = network.feature_adaptor, nn.Identity()
        try:
            return super().encode(prepared)
        finally:
            network.feature_adaptor = adaptor

    def prompt(self, prepared, features, *, digest):
        with torch.no_grad():
            adapted = self.model.model.feature_adaptor(features.tensor)
        return super().prompt(prepared, Features(adapted, features.provenance), digest=digest)


class ProjectorLater(EventGPTAdapter):
    """Runs tower and projector again for the frame that it left out."""

    rest = None

    def encode(self, prepared):
        self.rest = prepared.pixel_values[-1:]
        first = torch.cat([prepared.pixel_values[:-1], prepared.pixel_values[:1]])
        return super().encode(replace(prepared, pixel_values=first))

    def prompt(self, prepared, features, *, digest):
        network = self.model.model
        with torch.no_grad():
            network.visual_projector(network.visual_tower(self.rest))
        return super().prompt(prepared, features, digest=digest)


class PoolsLater(EventGPTAdapter):
    """Leaves the pooling to the prompt."""

    def encode(self, prepared):
        network = self.model.model
        with torch.no_grad():
            frames = network.visual_projector(network.visual_tower(prepared.pixel_values))
            network.finish_features(frames)
            return self._features(frames.flatten(0, 1), prepared)

    def prompt(self, prepared, features, *, digest):
        frames = features.tensor.unflatten(0, (prepared.num_frames, -1))
        pooled = torch.cat([frames.mean(1), frames.mean(0)])
        provenance = replace(features.provenance, shape=tuple(pooled.shape))
        return super().prompt(prepared, Features(pooled, provenance), digest=digest)


class FourFrames(EventGPTAdapter):
    """Encodes four of five frames, and repeats one of the results."""

    def encode(self, prepared):
        network = self.model.model
        with torch.no_grad():
            projected = network.visual_projector(network.visual_tower(prepared.pixel_values[:4]))
            return self._features(network.finish_features(torch.cat([projected, projected[-1:]])), prepared)


class WithoutCache(EagerEngine):
    """Computes the whole prompt again for each token."""

    def prefill(self, prompt, sampling, *, reuse=False):
        self.prompt = prompt
        return super().prefill(prompt, sampling, reuse=reuse)

    def _step(self, token, state, offset):
        super().prefill(self.prompt, Sampling())
        return super()._step(token, state, offset)


class HeadOverAllRows(EagerEngine):
    """Computes the logits of every position of the prompt."""

    def prefill(self, prompt, sampling, *, reuse=False):
        with torch.no_grad():
            self._language.head(prompt.inputs_embeds)
        return super().prefill(prompt, sampling, reuse=reuse)


class Idle(EagerEngine):
    """Keeps the device busy in each step."""

    def _step(self, token, state, offset):
        torch.einsum("bij,bjk->bik", torch.ones(8, 64, 64), torch.ones(8, 64, 64))
        return super()._step(token, state, offset)


def checked(model, sample, adapter=EventGPTAdapter, engine=EagerEngine):
    broken = staged(model, adapter, engine(model.adapter.language))
    return work(prepare_subject(broken, sample, TOKENS))


def test_a_sound_model_passes(demo_model, demo_sample):
    result = checked(demo_model, demo_sample)
    assert (result.name, result.status) == ("work", "pass"), result
    assert "from config" in result.expected


@pytest.mark.parametrize(
    ("adapter", "places"),
    [
        (ReEncodes, ["prefill executes extra"]),
        (ReEncodesAside, ["prefill executes extra"]),
        (CopiedTower, ["prefill executes extra"]),
        (InAnotherThread, ["prefill executes extra", "in another thread"]),
        (OneFrameAside, ["prefill executes extra"]),
        (EncodesTwice, ["encode executes extra"]),
        (EncodesInPreprocess, ["preprocess executes extra", "encode executes too little"]),
        (EncodesInLoad, ["load executes extra", "encode executes too little"]),
        (AdaptorLater, ["encode executes too little", "prefill changes the features"]),
        (PoolsLater, ["prefill changes the features"]),
        (ProjectorLater, ["prefill executes extra"]),
        (FourFrames, ["encode executes too little"]),
    ],
)
def test_a_broken_adapter_fails_and_the_stage_is_named(demo_model, demo_sample, adapter, places):
    result = checked(demo_model, demo_sample, adapter)
    assert result.status == "fail", result
    for place in places:
        assert place in result.observed


@pytest.mark.parametrize(
    ("engine", "place"),
    [(WithoutCache, "decode executes extra"), (HeadOverAllRows, "prefill executes extra"), (Idle, "decode")],
)
def test_a_broken_engine_fails(demo_model, demo_sample, engine, place):
    result = checked(demo_model, demo_sample, engine=engine)
    assert result.status == "fail", result
    assert place in result.observed
