"""The service behind the HTTP paths: encodes uploaded scenes and answers questions about them."""

from __future__ import annotations

import asyncio
import io
import json
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import IO, Any, Final

from sse_starlette import EventSourceResponse

from unfuse.feature_store import FeatureStore
from unfuse.features import Features
from unfuse.samples.demo import demo_dataset
from unfuse.serving.conversation import ChatRequest, Conversation, read_conversation
from unfuse.serving.disconnect import Receive, unless_disconnected
from unfuse.serving.engine_loop import EngineLoop
from unfuse.serving.intake import Intake
from unfuse.serving.metrics import Metrics
from unfuse.serving.sandbox_client import SandboxClient
from unfuse.serving.scenes import SCENE_STAGES, CachedScene, SceneCache
from unfuse.serving.settings import ServeSettings
from unfuse.serving.stop import StopTexts
from unfuse.serving.streamed import StreamedAnswer
from unfuse.serving.wire import RequestError, as_request_error, chunk, completion, usage
from unfuse.staged_model import StagedModel
from unfuse.stages import Loaded, Sampling

_SANDBOXES: Final = 2


class Service:
    """One model, its engine, its scenes and its limits."""

    def __init__(self, model: StagedModel, settings: ServeSettings, store: FeatureStore | None = None):
        """Start nothing yet.

        Args:
            model: loaded; its engine's thread alone uses it from ``start`` on.
            settings: limits.
            store: features that outlive the process.
        """
        self.settings = settings
        self.model_id = public_name(model.name)
        self.created = int(time.time())
        self.sandbox = SandboxClient(_SANDBOXES, settings.reading_s)
        self.engine = EngineLoop(model, capacity=settings.max_concurrent, queue=settings.queue, warm=self._warm_scene)
        self.takes = model.adapter.takes
        self.scenes = SceneCache(
            self.engine, self.sandbox, max_bytes=settings.scene_bytes, max_pending=max(settings.queue, 1), store=store
        )
        self.metrics = Metrics(self.engine)
        self.metrics.watch_scenes(lambda: len(self.scenes), lambda: self.scenes.memory_bytes)
        self.model = model
        self._intake = Intake()
        self._demos = {sample.sample_id: sample.files[0] for sample in demo_dataset().samples}

    def start(self) -> None:
        """Start the engine; the running event loop serves."""
        self.engine.start()

    def close(self) -> None:
        """End all threads and processes; unfinished answers fail."""
        self.engine.close()
        self.scenes.close()
        self.sandbox.close()
        self._intake.close()

    @property
    def about(self) -> Mapping[str, Any]:
        """Facts that the page displays."""
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

    async def upload(self, files: Sequence[IO[bytes]], name: str) -> tuple[CachedScene, bool]:
        """Encode the scene in files; return it, and whether it was encoded before.

        Raises:
            UnfuseError: they cannot be read or encoded.
            BusyError: too many uploads wait.
            TimeoutError: the request took too long.
        """
        upload = await asyncio.to_thread(self._intake.save, files, name)
        self.metrics.upload_bytes.inc(upload.num_bytes)
        async with asyncio.timeout(self.settings.timeout_s):
            scene, reused = await self.scenes.get_or_encode(upload)
        self.metrics.scenes.labels("reused" if reused else scene.source).inc()
        if not reused:
            self.metrics.stages(scene.stages_ms)
        return scene, reused

    async def demo(self, name: str) -> tuple[CachedScene, bool]:
        """Encode a built-in recording in the same way as an upload."""
        path = self._demos.get(name)
        if path is None:
            raise RequestError(404, "no_such_file", f"recording {name!r:.80}: expected one of {', '.join(self._demos)}")
        with path.open("rb") as file:
            return await self.upload([file], name)

    def scene(self, scene_id: str) -> CachedScene:
        """Return a scene from the cache.

        Raises:
            RequestError: it is not in the cache.
        """
        scene = self.scenes.get(scene_id)
        if scene is None:
            raise _missing(scene_id)
        return scene

    async def features(self, scene: CachedScene) -> Features:
        """Return the features of a scene.

        Raises:
            RequestError: they were evicted, and are not in the store.
        """
        found = await self.scenes.features(scene)
        if found is None:
            raise _missing(scene.scene_id)
        return found

    async def chat(self, request: ChatRequest, receive: Receive) -> Mapping[str, Any] | EventSourceResponse:
        """Return an answer, or a stream of it that has its first token."""
        arrived = time.perf_counter()
        if request.model != self.model_id:
            raise RequestError(
                404, "model_not_found", f"model {request.model!r:.80}: expected {self.model_id!r}", param="model"
            )
        reply_id = f"chatcmpl-{uuid.uuid4().hex}"
        conversation = read_conversation(request.messages, reply_id, max_bytes=self.settings.max_inline_bytes)
        turn = _Turn(self, request, conversation, arrived)
        async with asyncio.timeout(self.settings.timeout_s):
            if request.stream:
                await unless_disconnected(receive, turn.begin())
                # Without pings: OpenAI's stream has no comments, and a slow client has its own limit in the guard.
                return EventSourceResponse(turn.events(), ping=0, sep="\n")
            return await unless_disconnected(receive, turn.complete())

    async def scene_of(self, conversation: Conversation) -> tuple[CachedScene, bool]:
        """Return the scene of a conversation, and whether it was encoded before."""
        if conversation.scene_id is None:
            return await self.upload([io.BytesIO(data) for data in conversation.files], conversation.name)
        if conversation.scene_id in self._demos:
            return await self.demo(conversation.scene_id)
        return self.scene(conversation.scene_id), True

    def _warm_scene(self) -> Loaded:
        path = next(iter(self._demos.values()))
        return self.sandbox.read([path], self.takes).loaded


class _Turn:
    """One chat request: its scene, its answer and its response."""

    def __init__(self, service: Service, request: ChatRequest, conversation: Conversation, arrived: float):
        self._service = service
        self._request = request
        self._conversation = conversation
        self._arrived = arrived
        self._id = conversation.question.question_id
        self._created = int(time.time())
        self._max_new_tokens = _max_new_tokens(request, service.settings)
        self._sampling = _sampling(request)
        self._stops = StopTexts(request.stops)
        self._deadline = asyncio.get_running_loop().time() + service.settings.timeout_s
        self._first = ""
        self._scene: CachedScene
        self._reused: bool
        self._answer: StreamedAnswer
        self._texts: AsyncIterator[str]

    async def complete(self) -> Mapping[str, Any]:
        """Return the complete answer."""
        await self.begin()
        text = self._first
        async for piece in self._shown():
            text += piece
        service = self._service
        return completion(
            self._id, self._created, service.model_id, self._answer, text, self._reason, unfuse=self._about()
        )

    async def begin(self) -> None:
        """Wait for the first token."""
        service = self._service
        self._scene, self._reused = await service.scene_of(self._conversation)
        self._answer = StreamedAnswer(
            question=self._conversation.question,
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

    async def events(self) -> AsyncGenerator[str, None]:
        """Yield the data of server-sent events; a failure is the last event."""
        name = self._service.model_id
        options = self._request.stream_options
        try:
            first = {"role": "assistant", "content": self._first}
            yield json.dumps(chunk(self._id, self._created, name, first))
            async with aclosing(self._shown()) as pieces:
                async for piece in pieces:
                    if piece:
                        yield json.dumps(chunk(self._id, self._created, name, {"content": piece}))
            about = self._about()
            yield json.dumps(chunk(self._id, self._created, name, {}, self._reason, unfuse=about))
            if options is not None and options.include_usage:
                yield json.dumps(chunk(self._id, self._created, name, None, usage=usage(self._answer)))
            yield "[DONE]"
        except Exception as error:
            failure = as_request_error(error)
            self._service.metrics.errors.labels(failure.code).inc()
            yield json.dumps(failure.body)
            if failure.code == "internal_error":
                raise
        finally:
            self._service.engine.abort(self._answer)

    async def _shown(self) -> AsyncGenerator[str, None]:
        """Yield the text after the first piece, up to a stop text."""
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
        generation = self._answer.generation
        ended = self._stops.hit or (generation is not None and generation.stop_reason == "eos")
        return "stop" if ended else "length"

    def _about(self) -> dict[str, Any]:
        """Return the facts that extend OpenAI's format."""
        stages = dict.fromkeys(SCENE_STAGES, 0.0) if self._reused else dict(self._scene.stages_ms)
        for stage, ms in self._answer.stages_ms.items():
            stages[stage] = stages.get(stage, 0.0) + ms
        return {
            "scene": self._scene.scene_id,
            "features": "reused" if self._reused else self._scene.source,
            "stages": {f"{stage}_ms": ms for stage, ms in stages.items()},
            "ttft_ms": 1e3 * (self._answer.first_s - self._arrived),
            "total_ms": 1e3 * (time.perf_counter() - self._arrived),
            "notes": [*self._conversation.notes, *self._scene.notes],
        }

    def _count(self) -> None:
        metrics, answer = self._service.metrics, self._answer
        stages = dict(answer.stages_ms)
        metrics.queue.observe(stages.pop("queue") / 1e3)
        metrics.stages(stages)
        metrics.prompt_tokens.inc(answer.prompt_tokens)
        metrics.reused_tokens.inc(answer.reused_prefix_tokens)
        metrics.output_tokens.inc(len(answer.token_ids))
        metrics.request.observe(time.perf_counter() - self._arrived)


def public_name(name: str) -> str:
    """Return a model's name without the folders of this machine."""
    return Path(name).resolve().name if Path(name).is_dir() else name


def _missing(scene_id: str) -> RequestError:
    return RequestError(
        404, "no_such_file", f"file {scene_id!r:.80}: not here, or given up to make room; upload it again"
    )


def _max_new_tokens(request: ChatRequest, settings: ServeSettings) -> int:
    max_new_tokens = request.max_completion_tokens or request.max_tokens or settings.max_new_tokens
    if max_new_tokens > settings.max_new_tokens_limit:
        raise RequestError(
            400,
            "too_many_tokens",
            f"max_tokens: found {max_new_tokens}, expected at most {settings.max_new_tokens_limit}",
            param="max_tokens",
        )
    return max_new_tokens


def _sampling(request: ChatRequest) -> Sampling:
    temperature = float(request.temperature or 0.0)
    seed = request.seed if request.seed is not None else secrets.randbits(63) if temperature else 0
    return Sampling(
        temperature=temperature,
        top_p=float(request.top_p or 1.0),
        seed=seed,
        ignore_eos=bool(request.ignore_eos),
    )
