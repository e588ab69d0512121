"""The stages, the engine's own call and Hugging Face's generate in turn, with models that pay for the split."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.verification.disguises import disguised
from unfuse.adapters.eventgpt import EventGPTAdapter
from unfuse.benchmarking import PROTOCOLS, BenchSettings, price
from unfuse.benchmarking.price import price_of
from unfuse.benchmarking.setup import BenchSetup
from unfuse.engines.eager import EagerEngine
from unfuse.measure.timers import HostTimer
from unfuse.records import SampleRecord
from unfuse.report.price import price_summary

EXTRA_S = 0.03


@pytest.fixture
def paced(small_model, fake_time, monkeypatch):
    """Let a tower take 20 ms, and a pass of the decoder 10 ms, in the stages and in the fused call."""
    network = small_model.adapter.model.model
    handles = [
        network.visual_tower.visual_tower.register_forward_hook(lambda *_: fake_time.sleep(0.02)),
        network.layers[0].register_forward_hook(lambda *_: fake_time.sleep(0.01)),
    ]
    monkeypatch.setattr(price, "TURNS", 6)
    yield fake_time
    for handle in handles:
        handle.remove()


def measured(model, sample, **settings):
    samples = [replace(sample, sample_id=name) for name in "abc"]
    records = {each.sample_id: SampleRecord(sample_id=each.sample_id, status="ok", output_tokens=3) for each in samples}
    setup = BenchSetup(
        model=model, protocol=PROTOCOLS["decoupled"], settings=BenchSettings(**settings), timer=HostTimer()
    )
    return price_of(setup, samples, records)


def faults(model, sample):
    return " | ".join(price_summary(measured(model, sample), "eager").faults())


def test_the_sound_model_pays_nothing(paced, small_model, small_sample):
    found = measured(small_model, small_sample)
    assert found.sample_ids == ("a", "b", "c", "a", "b", "c")
    for times in (found.stages_ms, found.call_ms, found.generate_ms):
        assert times == pytest.approx([50.0] * 6)
    assert not list(price_summary(found, "eager").faults())


def test_time_in_the_prompt_is_found(paced, small_model, small_sample):
    class SlowPrompt(EventGPTAdapter):
        def prompt(self, prepared, features, *, digest):
            paced.sleep(EXTRA_S)
            return super().prompt(prepared, features, digest=digest)

    assert "the stages take longer than Hugging Face's generate: +60.0 %" in faults(
        disguised(small_model, SlowPrompt), small_sample
    )


def test_time_in_prefill_is_found(paced, small_model, small_sample):
    class SlowPrefill(EagerEngine):
        def prefill(self, prompt, sampling, *, reuse=False):
            paced.sleep(EXTRA_S)
            return super().prefill(prompt, sampling, reuse=reuse)

    model = disguised(small_model, EventGPTAdapter, SlowPrefill)
    assert "the stages take longer than Hugging Face's generate" in faults(model, small_sample)


def test_time_in_decode_is_found(paced, small_model, small_sample):
    class SlowDecode(EagerEngine):
        def decode(self, prefilled, max_new_tokens, drafts=None):
            for token in super().decode(prefilled, max_new_tokens, drafts):
                paced.sleep(EXTRA_S / 3)
                yield token

    model = disguised(small_model, EventGPTAdapter, SlowDecode)
    assert "the stages take longer than Hugging Face's generate" in faults(model, small_sample)


def test_time_in_encode_is_found(paced, small_model, small_sample):
    class SlowEncode(EventGPTAdapter):
        def encode(self, prepared):
            paced.sleep(EXTRA_S)
            return super().encode(prepared)

    assert "encode and generate take longer than Hugging Face's generate" in faults(
        disguised(small_model, SlowEncode), small_sample
    )


def test_time_in_tokenize_is_found(paced, small_model, small_sample):
    class SlowTokenize(EventGPTAdapter):
        def tokenize(self, question, features):
            paced.sleep(EXTRA_S)
            return super().tokenize(question, features)

    found = faults(disguised(small_model, SlowTokenize), small_sample)
    assert "the engine's own call takes longer than the stages" in found
    assert "encode and generate take longer than Hugging Face's generate" in found


def test_the_time_is_limited(paced, small_model, small_sample):
    assert len(measured(small_model, small_sample, balance_seconds=0.2).stages_ms) == 2
    assert measured(small_model, small_sample, balance_seconds=0.0).reason == "not requested: --balance-seconds 0"
