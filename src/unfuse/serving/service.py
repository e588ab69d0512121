"""What a server does, whatever the paths are called: takes scenes in and answers questions about them."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Final

from unfuse.feature_store import FeatureStore
from unfuse.features import Features
from unfuse.samples.demo import demo_dataset
from unfuse.serving.answer import Answer
from unfuse.serving.conversation import Asked, ChatRequest, asked_of, opened
from unfuse.serving.engine_loop import EngineLoop
from unfuse.serving.intake import Intake
from unfuse.serving.kinds import taken_by
from unfuse.serving.metrics import Metrics
from unfuse.serving.reading import Readers
from unfuse.serving.replies import EventStream, Receive, unless_gone
from unfuse.serving.scenes import SCENE_STAGES, Scene, Scenes
from unfuse.serving.settings import ServeSettings
from unfuse.serving.stop import StopTexts
from unfuse.serving.wire import RequestError, as_request_error, chunk, completion, event, usage
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded, Sampling

_READERS: Final = 2


class Service:
    """One model, its engine, its scenes and its limits."""

    def __init__(self, model: StagedModel, settings: ServeSettings, store: FeatureStore | None = None):
        """Starts nothing yet.

        Args:
            model: loaded; its engine's thread alone uses it from ``start`` on.
            settings: limits.
            store: of features that outlive the process.
        """
        self.settings = settings
        self.model_id = public_name(model.name)
        self.created = int(time.time())
        self.readers = Readers(_READERS, settings.reading_s)
        self.engine = EngineLoop(model, capacity=settings.max_concurrent, queue=settings.queue, warm=self._warm_scene)
        self.takes = taken_by(model.adapter)
        self.scenes = Scenes(
            self.engine, self.readers, most_bytes=settings.scene_bytes, most_made=max(settings.queue, 1), store=store
        )
        self.metrics = Metrics(self.engine)
        self.metrics.watch_scenes(lambda: len(self.scenes), lambda: self.scenes.kept_bytes)
        self.model = model
        self._intake = Intake()
        self._demos = {sample.sample_id: sample.files[0] for sample in demo_dataset().samples}

    def start(self) -> None:
        """From the event loop that serves."""
        self.engine.start()

    def close(self) -> None:
        """Ends everything; answers under way fail."""
        self.engine.close()
        self.scenes.close()
        self.readers.close()
        self._intake.close()

    @property
    def about(self) -> Mapping[str, Any]:
        """What a page needs to know."""
        return {
            "model": self.model_id,
            "family": self.model.family,
            "takes": self.takes,
            "device": str(self.model.device),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "engine": self.model.engine.name,
            "notes": list(self.model.notes),
            "demos": list(self._demos),
            "max_upload_bytes": self.settings.max_upload_bytes,
            "max_new_tokens": self.settings.max_new_tokens,
        }

    async def upload(self, files: Sequence[IO[bytes]], name: str) -> tuple[Scene, bool]:
        """The scene that files are, and whether it was encoded before.

        Raises:
            UnfuseError: they cannot be read or encoded.
            BusyError: as many wait as may.
            TimeoutError: within the time that a request has.
        """
        kept = await asyncio.to_thread(self._intake.keep, files, name)
        self.metrics.upload_bytes.inc(kept.num_bytes)
        async with asyncio.timeout(self.settings.timeout_s):
            scene, reused = await self.scenes.take(kept)
        self.metrics.scenes.labels("reused" if reused else scene.source).inc()
        if not reused:
            self.metrics.stages(scene.stages_ms)
        return scene, reused

    async def demo(self, name: str) -> tuple[Scene, bool]:
        """A built-in recording, as if it had been uploaded."""
        path = self._demos.get(name)
        if path is None:
            raise RequestError(404, "no_such_file", f"recording {name!r:.80}: expected one of {', '.join(self._demos)}")
        with path.open("rb") as file:
            return await self.upload([file], name)

    def scene(self, scene_id: str) -> Scene:
        """One that is kept.

        Raises:
            RequestError: it is not, or no longer.
        """
        scene = self.scenes.get(scene_id)
        if scene is None:
            raise _gone(scene_id)
        return scene

    async def features(self, scene: Scene) -> Features:
        """What a question about a scene needs.

        Raises:
            RequestError: they were given up, and are not in the store.
        """
        found = await self.scenes.features(scene)
        if found is None:
            raise _gone(scene.scene_id)
        return found

    async def chat(self, request: ChatRequest, receive: Receive) -> Mapping[str, Any] | EventStream:
        """An answer, or the stream of one. By the time that a stream is returned its first token exists."""
        arrived = time.perf_counter()
        if request.model != self.model_id:
            raise RequestError(
                404, "model_not_found", f"model {request.model!r:.80}: expected {self.model_id!r}", param="model"
            )
        asked = asked_of(request.messages, most_bytes=self.settings.max_inline_bytes)
        turn = _Turn(self, request, asked, arrived)
        async with asyncio.timeout(self.settings.timeout_s):
            if request.stream:
                await unless_gone(receive, turn.begin())
                return EventStream(turn.events())
            return await unless_gone(receive, turn.whole())

    async def asked_scene(self, asked: Asked) -> tuple[Scene, bool]:
        """The scene of a question."""
        if asked.scene_id is None:
            return await self.upload(opened(asked.files), asked.name)
        if asked.scene_id in self._demos:
            return await self.demo(asked.scene_id)
        return self.scene(asked.scene_id), True

    def _warm_scene(self) -> Loaded:
        path = next(iter(self._demos.values()))
        return self.readers.read([path], self.takes).loaded


class _Turn:
    """One chat request: its scene, its answer, and what is said of them."""

    def __init__(self, service: Service, request: ChatRequest, asked: Asked, arrived: float):
        self._service = service
        self._request = request
        self._asked = asked
        self._arrived = arrived
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._max_new_tokens = _max_new_tokens(request, service.settings)
        self._sampling = _sampling(request)
        self._stops = StopTexts(request.stops)
        self._deadline = asyncio.get_running_loop().time() + service.settings.timeout_s
        self._first = ""
        self._scene: Scene
        self._reused: bool
        self._answer: Answer
        self._texts: AsyncIterator[str]

    async def whole(self) -> Mapping[str, Any]:
        """All of it at once."""
        await self.begin()
        text = self._first
        async for piece in self._shown():
            text += piece
        service = self._service
        return completion(
            self._id, self._created, service.model_id, self._answer, text, self._reason, unfuse=self._about()
        )

    async def begin(self) -> None:
        """Up to the first token."""
        service = self._service
        self._scene, self._reused = await service.asked_scene(self._asked)
        self._answer = Answer(
            question=self._asked.question,
            features=await service.features(self._scene),
            max_new_tokens=self._max_new_tokens,
            sampling=self._sampling,
        )
        service.engine.submit(self._answer)
        self._texts = self._answer.texts(self._deadline)
        try:
            self._first = self._stops.feed(await anext(self._texts))
        except BaseException:
            service.engine.abort(self._answer)
            raise
        service.metrics.ttft.observe(time.perf_counter() - self._arrived)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events; a failure after the first is one too, and the last."""
        name = self._service.model_id
        options = self._request.stream_options
        try:
            first = {"role": "assistant", "content": self._first}
            yield event(chunk(self._id, self._created, name, first))
            async with aclosing(self._shown()) as pieces:
                async for piece in pieces:
                    if piece:
                        yield event(chunk(self._id, self._created, name, {"content": piece}))
            about = self._about()
            yield event(chunk(self._id, self._created, name, {}, self._reason, unfuse=about))
            if options is not None and options.include_usage:
                yield event(chunk(self._id, self._created, name, None, usage=usage(self._answer)))
            yield event(b"[DONE]")
        except Exception as error:
            failure = as_request_error(error)
            self._service.metrics.errors.labels(failure.code).inc()
            yield event(failure.body)
            if failure.status == 500:
                raise
        finally:
            self._service.engine.abort(self._answer)

    async def _shown(self) -> AsyncGenerator[str, None]:
        """What is shown after the first piece."""
        try:
            async for text in self._texts:
                yield self._stops.feed(text)
                if self._stops.hit:
                    break
            if rest := self._stops.end():
                yield rest
        finally:
            self._service.engine.abort(self._answer)
            self._count()

    @property
    def _reason(self) -> str:
        return "stop" if self._stops.hit or self._answer.finished == "eos" else "length"

    def _about(self) -> dict[str, Any]:
        """Beyond what OpenAI's clients know."""
        stages = dict.fromkeys(SCENE_STAGES, 0.0) if self._reused else dict(self._scene.stages_ms)
        for stage, ms in self._answer.stages_ms.items():
            stages[stage] = stages.get(stage, 0.0) + ms
        return {
            "scene": self._scene.scene_id,
            "features": "reused" if self._reused else self._scene.source,
            "stages": {f"{stage}_ms": ms for stage, ms in stages.items()},
            "ttft_ms": 1e3 * (self._answer.first_s - self._arrived),
            "total_ms": 1e3 * (time.perf_counter() - self._arrived),
            "notes": [*self._asked.notes, *self._scene.notes],
        }

    def _count(self) -> None:
        metrics, answer = self._service.metrics, self._answer
        stages = dict(answer.stages_ms)
        metrics.queue.observe(stages.pop("queue") / 1e3)
        metrics.stages(stages)
        metrics.prompt_tokens.inc(answer.prompt_tokens)
        metrics.reused_tokens.inc(answer.reused_prefix_tokens)
        metrics.output_tokens.inc(answer.output_tokens)
        metrics.request.observe(time.perf_counter() - self._arrived)


def public_name(name: str) -> str:
    """A model's name without the folders of this machine."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _gone(scene_id: str) -> RequestError:
    return RequestError(
        404, "no_such_file", f"file {scene_id!r:.80}: not here, or given up to make room; upload it again"
    )


def _max_new_tokens(request: ChatRequest, settings: ServeSettings) -> int:
    asked = request.max_completion_tokens or request.max_tokens or settings.max_new_tokens
    if asked > settings.max_new_tokens_limit:
        raise RequestError(
            400,
            "too_many_tokens",
            f"max_tokens: found {asked}, expected at most {settings.max_new_tokens_limit}",
            param="max_tokens",
        )
    return asked


def _sampling(request: ChatRequest) -> Sampling:
    temperature = float(request.temperature or 0.0)
    seed = request.seed if request.seed is not None else secrets.randbits(63) if temperature else 0
    return Sampling(
        temperature=temperature,
        top_p=float(request.top_p or 1.0),
        seed=seed,
        ignore_eos=bool(request.ignore_eos),
    )
