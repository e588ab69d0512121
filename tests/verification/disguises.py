"""Models that give a scene the results of another one, or of an earlier run, each in a way of its own."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import torch

from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.engines.eager import EagerEngine
from unfuse.features import Features
from unfuse.staged_model import StagedModel


def disguised(demo_model, adapter_class, engine_class=EagerEngine):
    source = demo_model.adapter
    adapter = adapter_class(source.model, source.preprocessor, source.fingerprint)
    return StagedModel(adapter_class.__name__, adapter, engine_class(adapter.language))


class Remembers(EventGPTAdapter):
    """Has an empty memory."""

    def __init__(self, *given):
        super().__init__(*given)
        self.memory = {}

    def once(self, key, make):
        if key not in self.memory:
            self.memory[key] = make()
        return self.memory[key]

    def of(self, features, prepared):
        """Return features under the provenance of a scene."""
        return Features(features.tensor, self._features(features.tensor, prepared).provenance)


class MemoEncode(Remembers):
    """Keeps features under a key of the prepared scene."""

    def key(self, prepared):
        raise NotImplementedError

    def encode(self, prepared):
        return self.of(self.once(self.key(prepared), lambda: EventGPTAdapter.encode(self, prepared)), prepared)


class FirstScene(MemoEncode):
    def key(self, prepared):
        return "any"


class ByPixels(MemoEncode):
    """Correct, and too fast."""

    def key(self, prepared):
        return hashlib.sha256(prepared.pixel_values.numpy().tobytes()).digest()


class ByMediaHash(MemoEncode):
    """Correct, and too fast."""

    def key(self, prepared):
        return prepared.media_sha256


class ByShape(MemoEncode):
    def key(self, prepared):
        return prepared.pixel_values.shape


class ByQuestion(MemoEncode):
    def key(self, prepared):
        return prepared.question


class ByFrameCount(MemoEncode):
    def key(self, prepared):
        return prepared.num_frames


class ByInputIds(MemoEncode):
    def key(self, prepared):
        return prepared.token_ids


class ByFewPixels(MemoEncode):
    def key(self, prepared):
        return prepared.pixel_values.flatten()[::1009].numpy().tobytes()


class ByFirstFrame(MemoEncode):
    def key(self, prepared):
        return prepared.pixel_values[0].numpy().tobytes()


class ByMean(MemoEncode):
    def key(self, prepared):
        return round(float(prepared.pixel_values.double().mean()), 4)


class ByHistogram(MemoEncode):
    """Correct for all changes of values, and not for exchanged ones."""

    def key(self, prepared):
        return prepared.pixel_values.sum(dim=(2, 3)).round(decimals=2).numpy().tobytes()


class PreviousScene(Remembers):
    def encode(self, prepared):
        own = super().encode(prepared)
        found, self.memory["last"] = self.memory.get("last", own), own
        return self.of(found, prepared)


class Blends(Remembers):
    """Adds a hundredth of the previous features."""

    def encode(self, prepared):
        own = super().encode(prepared)
        last, self.memory["last"] = self.memory.get("last", own), own
        return self.of(Features(own.tensor * 0.99 + last.tensor * 0.01, own.provenance), prepared)


class FirstFrame(EventGPTAdapter):
    def encode(self, prepared):
        pixels = prepared.pixel_values[:1].expand_as(prepared.pixel_values)
        return super().encode(replace(prepared, pixel_values=pixels))


class LeavesOutLastFrame(EventGPTAdapter):
    def encode(self, prepared):
        pixels = prepared.pixel_values.clone()
        pixels[-1] = pixels[0]
        return super().encode(replace(prepared, pixel_values=pixels))


class SortsFrames(EventGPTAdapter):
    """Gives the frames to the tower in an order of their own."""

    def encode(self, prepared):
        order = prepared.pixel_values.flatten(1).sum(dim=1).argsort()
        return super().encode(replace(prepared, pixel_values=prepared.pixel_values[order]))


class Coarse(EventGPTAdapter):
    """Sees a quarter of the pixels."""

    def encode(self, prepared):
        pixels = prepared.pixel_values[..., ::2, ::2].repeat_interleave(2, -1).repeat_interleave(2, -2)
        return super().encode(replace(prepared, pixel_values=pixels))


class SwapsBatch(EventGPTAdapter):
    def encode_batch(self, prepared):
        found = super().encode_batch(prepared)
        return [Features(features.tensor, own.provenance) for features, own in zip(reversed(found), found, strict=True)]


class FilesByPath(Remembers):
    def load(self, sample):
        return self.once((sample.files, bool(sample.frames)) if sample.files else id(sample), lambda: self.read(sample))

    def read(self, sample):
        return super().load(sample)


class FilesByName(FilesByPath):
    def load(self, sample):
        names = tuple(path.name for path in sample.files)
        return self.once(names, lambda: self.read(sample)) if names else self.read(sample)


class FilesBySize(FilesByPath):
    def load(self, sample):
        sizes = tuple(path.stat().st_size for path in sample.files)
        return self.once(sizes, lambda: self.read(sample)) if sizes else self.read(sample)


class FilesBySampleId(FilesByPath):
    def load(self, sample):
        return self.once(sample.sample_id, lambda: self.read(sample))


class FilesByContent(FilesByPath):
    """Correct, and too fast."""

    def load(self, sample):
        return self.once(self.media_sha256(sample), lambda: self.read(sample))


class LastFrameOfPreviousFile(FilesByPath):
    def load(self, sample):
        loaded = self.read(sample)
        last, self.memory["last"] = self.memory.get("last", loaded.frames[-1]), loaded.frames[-1]
        return replace(loaded, frames=[*loaded.frames[:-1], last])


class FirstEventWins(FilesByPath):
    """Draws the events in reverse order, where an order shows."""

    def load(self, sample):
        from unfuse.events import event_frames
        from unfuse.samples.variants import in_reverse, stream_of

        loaded = self.read(sample)
        if sample.event_data is None:
            return loaded
        return replace(loaded, frames=event_frames(in_reverse(stream_of(sample)), 5)[::-1])


class PixelsByShape(Remembers):
    def preprocess(self, loaded, question=None):
        own = super().preprocess(loaded, question)
        key = tuple(frame.shape for frame in loaded.frames)
        return replace(own, pixel_values=self.once(key, lambda: own.pixel_values))


class PixelsByHash(Remembers):
    """Correct, and too fast."""

    def preprocess(self, loaded, question=None):
        key = hashlib.sha256(b"".join(frame.tobytes() for frame in loaded.frames)).digest(), question
        return self.once(key, lambda: EventGPTAdapter.preprocess(self, loaded, question))


class PixelsOfFramesByHash(Remembers):
    """Correct, and too fast: each frame for itself."""

    def preprocess(self, loaded, question=None):
        def make(frame):
            return super(PixelsOfFramesByHash, self).preprocess(replace(loaded, frames=[frame]), question)

        frames = [self.once(frame.tobytes(), lambda frame=frame: make(frame)) for frame in loaded.frames]
        return replace(
            frames[0],
            pixel_values=torch.cat([frame.pixel_values for frame in frames]),
            media_sha256=loaded.media_sha256,
            num_frames=len(frames),
            media_tokens=frames[0].media_tokens + len(frames) - 1,
            frame_sizes=sum((frame.frame_sizes for frame in frames), ()),
        )


class FeaturesOfFramesByHash(Remembers):
    """Correct, and too fast: the tower's output of each frame for itself."""

    @torch.no_grad()
    def encode(self, prepared):
        network = self.model.model

        def make(frame):
            return network.visual_projector(network.visual_tower(frame[None]))

        frames = [
            self.once(hashlib.sha256(frame.numpy().tobytes()).digest(), lambda frame=frame: make(frame))
            for frame in prepared.pixel_values
        ]
        return self._features(network.finish_features(torch.cat(frames)), prepared)


class StalePrefix(EventGPTAdapter):
    """A prefix cache that is keyed by the text alone."""

    def prompt(self, prepared, features, *, digest):
        return replace(super().prompt(prepared, features, digest=digest), features_digest="always the same")


class PromptOfFirstScene(Remembers):
    def prompt(self, prepared, features, *, digest):
        first = self.once("features", lambda: features)
        return super().prompt(prepared, self.of(first, prepared), digest=digest)


class PrefillByPrompt(EagerEngine):
    """Correct, and too fast."""

    memory = None

    def prefill(self, prompt, sampling, *, reuse=False):
        self.memory = {} if self.memory is None else self.memory
        key = hashlib.sha256(prompt.inputs_embeds.numpy().tobytes()).digest()
        if key not in self.memory:
            self.memory[key] = super().prefill(prompt, sampling)
        return self.memory[key]


class AnswersByLength(EagerEngine):
    """Answers a prompt with the first answer to a prompt of its length."""

    memory = None

    def decode(self, prefilled, max_new_tokens, drafts=None):
        self.memory = {} if self.memory is None else self.memory
        key = prefilled.prompt_tokens, max_new_tokens
        if key not in self.memory:
            self.memory[key] = list(super().decode(prefilled, max_new_tokens, drafts))
        yield from self.memory[key]
