"""Prometheus metrics of a server."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, Metric

from unfuse.serving.engine_loop import EngineLoop

_SECONDS: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip


class Metrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self, engine: EngineLoop):
        """Create all metrics at zero.

        Args:
            engine: read at each scrape.
        """
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.stage = self._histogram("unfuse_stage_seconds", "Time of a stage of one request", ["stage"])
        self.ttft = self._histogram("unfuse_ttft_seconds", "From a chat request's arrival to its first token")
        self.queue = self._histogram("unfuse_queue_seconds", "Wait of an answer for its turn")
        self.request = self._histogram("unfuse_request_seconds", "A chat request from its arrival to its end")
        self.requests = self._counter("unfuse_requests", "HTTP requests by path and status", ["path", "status"])
        self.errors = self._counter("unfuse_errors", "Refused or failed requests by error code", ["code"])
        self.scenes = self._counter("unfuse_scenes", "Scenes requested, by source of their features", ["source"])
        self.prompt_tokens = self._counter("unfuse_prompt_tokens", "Prompt positions, text and features")
        self.reused_tokens = self._counter("unfuse_reused_prefix_tokens", "Of them, taken over from an earlier prompt")
        self.output_tokens = self._counter("unfuse_output_tokens", "New tokens")
        self.upload_bytes = self._counter("unfuse_upload_bytes", "Bytes of files taken in")
        self._gauge("unfuse_requests_running", "Answers being written", lambda: engine.num_running)
        self._gauge("unfuse_requests_waiting", "Answers that wait for their turn", lambda: engine.num_waiting)
        self._gauge("unfuse_ready", "1 where questions are answered", lambda: int(engine.ready))
        self.registry.register(_Busy(engine))

    def watch_scenes(self, count: Callable[[], float], size: Callable[[], float]) -> None:
        """Add gauges of the scene cache; both calls are made at each scrape."""
        self._gauge("unfuse_scenes_kept", "Scenes in memory", count)
        self._gauge("unfuse_scenes_kept_bytes", "Their features and pictures", size)

    def stages(self, milliseconds: Mapping[str, float]) -> None:
        """Observe the stages of one request."""
        for stage, ms in milliseconds.items():
            self.stage.labels(stage).observe(ms / 1e3)

    def text(self) -> bytes:
        """Return Prometheus's text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, about: str, labels: Iterable[str] = ()) -> Histogram:
        return Histogram(name, about, labels, registry=self.registry, buckets=_SECONDS)

    def _counter(self, name: str, about: str, labels: Iterable[str] = ()) -> Counter:
        return Counter(name, about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        Gauge(name, about, registry=self.registry).set_function(value)


class _Busy:
    """Seconds of the continuous batch in each stage."""

    def __init__(self, engine: EngineLoop):
        self._engine = engine

    def collect(self) -> Iterable[Metric]:
        family = CounterMetricFamily("unfuse_engine_busy_seconds", "Time the engine spent in a stage", labels=["stage"])
        for stage, seconds in dict(self._engine.busy_s).items():
            family.add_metric([stage], seconds)
        yield family
