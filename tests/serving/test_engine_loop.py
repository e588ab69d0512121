"""The thread that owns the model: requests join, leave and fail, and the others go on."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from tests.serving.fakes import LOADED, FakeBatch, FakeModel, features_of
from tests.started import PATIENCE_S
from unfuse.errors import DeviceError, FeaturesError
from unfuse.samples import Question
from unfuse.serving.engine_loop import BusyError, EngineLoop
from unfuse.serving.streamed import EngineStoppedError, StreamedAnswer
from unfuse.stages import Generation, Sampling

NUMBERS = itertools.count()


def question(text: str = "good", tokens: int = 5) -> StreamedAnswer:
    return StreamedAnswer(
        question=Question(question_id=f"q-{next(NUMBERS)}", text=text),
        features=features_of("a" * 64),
        max_new_tokens=tokens,
        sampling=Sampling(),
    )


async def words(answer: StreamedAnswer, seconds: float = PATIENCE_S) -> str:
    return "".join([text async for text in answer.texts(asyncio.get_running_loop().time() + seconds)])


@asynccontextmanager
async def looping(model: Any, *, capacity: int | None = 2, queue: int = 4) -> AsyncIterator[EngineLoop]:
    loop = EngineLoop(model, capacity=capacity, queue=queue, warm=lambda: LOADED)
    loop.start()
    try:
        await until(lambda: loop.ready or loop.failure is not None)
        yield loop
    finally:
        model.batch.gate.set()
        await asyncio.to_thread(loop.close)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.001)


def run(work: Callable[[], Awaitable[None]]) -> None:
    async def all_of_it() -> None:
        await work()

    asyncio.run(all_of_it())


def test_many_answers_together_on_one_thread() -> None:
    model = FakeModel()

    async def work() -> None:
        async with looping(model, queue=64) as loop:
            answers = [question(tokens=3 + i) for i in range(20)]
            for answer in answers:
                loop.submit(answer)
            texts = await asyncio.gather(*(words(answer) for answer in answers))
            assert texts == [" ".join(map(str, range(3 + i))) for i in range(20)]
            for i, answer in enumerate(answers):
                assert answer.generation == Generation(
                    token_ids=tuple(range(3 + i)), text=texts[i], stop_reason="length", prompt_tokens=7,
                    reused_prefix_tokens=3,
                )  # fmt: skip
                assert all(ms >= 0 for ms in answer.stages_ms.values())
                assert answer.submitted_s <= answer.joined_s <= answer.first_s <= answer.last_s
            assert loop.num_running == loop.num_waiting == 0

    run(work)
    assert model.batch.most_together == 2
    assert model.batch.threads == {"unfuse-engine_0"}
    assert model.batch.closed
    assert model.closed


def test_a_full_queue_refuses() -> None:
    model = FakeModel()

    async def work() -> None:
        async with looping(model, capacity=2, queue=3) as loop:
            model.batch.gate.clear()
            answers = [question() for _ in range(5)]
            for answer in answers:
                loop.submit(answer)
            with pytest.raises(BusyError):
                loop.submit(question())
            model.batch.gate.set()
            await asyncio.gather(*(words(answer) for answer in answers))
            late = question()
            loop.submit(late)
            await words(late)

    run(work)


def test_a_joining_answer_counts() -> None:
    model = FakeModel()
    joining, go = threading.Event(), threading.Event()

    async def work() -> None:
        async with looping(model, capacity=2, queue=0) as loop:
            made = loop._request

            def slowly(answer: StreamedAnswer) -> Any:
                joining.set()
                assert go.wait(PATIENCE_S)
                return made(answer)

            loop._request = slowly  # type: ignore[method-assign]
            answers = [question(), question()]
            loop.submit(answers[0])
            await until(joining.is_set)
            loop.submit(answers[1])
            with pytest.raises(BusyError):
                loop.submit(question())
            go.set()
            await asyncio.gather(*(words(answer) for answer in answers))

    run(work)


def test_an_aborted_answer_makes_room() -> None:
    model = FakeModel(FakeBatch(step_s=0.001))

    async def work() -> None:
        async with looping(model, capacity=1) as loop:
            endless, waiting, last = question(tokens=10**9), question(tokens=10**9), question()
            for answer in (endless, waiting, last):
                loop.submit(answer)
            await until(lambda: len(endless.token_ids) > 2)
            loop.abort(waiting)
            loop.abort(endless)
            loop.abort(endless)
            assert await words(last) == "0 1 2 3 4"
            loop.abort(last)

    run(work)
    assert len(model.batch.aborted) == 1, "the one that had not started is not in the batch"


def test_a_bad_question_fails_alone() -> None:
    model = FakeModel()

    async def work() -> None:
        async with looping(model) as loop:
            bad, odd, good, large = question("bad"), question("odd"), question(), question(tokens=10**10)
            for answer in (bad, odd, large, good):
                loop.submit(answer)
            with pytest.raises(DeviceError, match="too many positions"):
                await words(large)
            with pytest.raises(FeaturesError, match="a bad one"):
                await words(bad)
            with pytest.raises(UnicodeError):
                await words(odd)
            assert await words(good)

    run(work)


def test_a_scene_is_encoded_while_answers_go_on() -> None:
    model = FakeModel(FakeBatch(step_s=0.001))

    async def work() -> None:
        async with looping(model) as loop:
            endless = question(tokens=10**9)
            loop.submit(endless)
            encoded = await loop.encode(replace(LOADED, media_sha256="b" * 64), host_copy=True)
            assert encoded.features.provenance.media_sha256 == "b" * 64
            assert encoded.on_host is not None
            assert encoded.encode_ms >= 0
            for kind, error in (("bad", FeaturesError), ("out of memory", RuntimeError)):
                with pytest.raises(error):
                    await loop.encode(replace(LOADED, media_sha256=kind))
            assert loop.ready
            written = len(endless.token_ids)
            await until(lambda: len(endless.token_ids) > written)
            loop.abort(endless)

    run(work)


def test_a_deadline_is_an_error() -> None:
    model = FakeModel()

    async def work() -> None:
        async with looping(model) as loop:
            model.batch.gate.clear()
            answer = question()
            loop.submit(answer)
            with pytest.raises(TimeoutError):
                await words(answer, 0.05)

    run(work)


def test_closing_fails_unfinished_answers() -> None:
    model = FakeModel(FakeBatch(step_s=0.001))

    async def work() -> None:
        async with looping(model, capacity=1) as loop:
            answers = [question(tokens=10**9), question()]
            for answer in answers:
                loop.submit(answer)
            await until(lambda: bool(answers[0].token_ids))
            await asyncio.to_thread(loop.close)
            for answer in answers:
                with pytest.raises(EngineStoppedError, match="shutting down"):
                    await words(answer)
            for late in (lambda: loop.submit(question()), lambda: asyncio.wait_for(loop.encode(LOADED), PATIENCE_S)):
                with pytest.raises(EngineStoppedError):
                    await late() if (found := late()) is None else await found  # type: ignore[func-returns-value]
            assert loop.failure is None

    run(work)


def test_a_failing_engine_fails_all_answers_and_stops() -> None:
    model = FakeModel()
    notified: list[bool] = []

    async def work() -> None:
        async with looping(model, capacity=1) as loop:
            loop.on_failure = lambda: notified.append(True)
            model.batch.gate.clear()
            answers = [question(), question()]
            for answer in answers:
                loop.submit(answer)
            scene = asyncio.create_task(loop.encode(LOADED))
            await until(lambda: bool(model.batch.running))
            model.batch.broken = True
            model.batch.gate.set()
            for answer in answers:
                with pytest.raises(EngineStoppedError, match="RuntimeError"):
                    await words(answer)
            await asyncio.wait({scene})
            await until(lambda: bool(notified))
            assert isinstance(loop.failure, RuntimeError)
            assert not loop.ready
            assert not loop.alive
            with pytest.raises(EngineStoppedError):
                loop.submit(question())

    run(work)
    assert model.batch.closed


def test_a_model_that_cannot_answer_is_never_ready() -> None:
    class Deaf(FakeModel):
        def encode(self, prepared: Any) -> Any:
            raise RuntimeError("no")

    async def work() -> None:
        async with looping(Deaf()) as loop:
            assert loop.failure is not None
            assert not loop.ready

    run(work)
