"""Engine ``graphed``: a LLaMA's Stage 4 as captured graphs over own kernels."""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterator, Mapping
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import nn

from unfuse.engines.batching import ContinuousBatch, TurnByTurn
from unfuse.engines.eager import EagerEngine, common_prefix
from unfuse.engines.graphed.answers import Answers, State, Step
from unfuse.engines.graphed.caches import Sequence, new_sequence
from unfuse.engines.graphed.capture import Captured, go_to, ordinary_tensors
from unfuse.engines.graphed.continuous import GraphedBatch
from unfuse.engines.graphed.kernels.few_rows import MOST_ROWS
from unfuse.engines.graphed.kernels.rows import largest
from unfuse.engines.graphed.network import Network
from unfuse.engines.graphed.prompts import Prompts, Rows
from unfuse.engines.graphed.seats import Seats
from unfuse.engines.graphed.structure import find_llama
from unfuse.engines.graphed.tuning import Tuner
from unfuse.engines.graphed.vision import CapturedVision
from unfuse.engines.graphed.workspace import row_bucket
from unfuse.engines.language_model import LanguageModel
from unfuse.engines.padding import unpadded
from unfuse.engines.sampling import TokenChooser
from unfuse.engines.unserved import Unserved
from unfuse.stages import Prefilled, Prompt, Sampling

_APART: Final = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.1}
"""Largest relative distance of logits from the model's own at which both compute the same."""
_COMPARED: Final = MOST_ROWS + 8
"""Rows of the prompts that a new engine is compared on: over the border between few and many rows."""
_ROOM: Final = 64
"""Positions beyond a prompt's, until it is known how long an answer may be."""
_ROOM_ON_HOST: Final = 2**30
"""Bytes."""
_ROOM_FOR_WORK: Final = 3 * 2**30
"""Bytes of a device's memory that encoding and passes over prompts may take."""
_MOST_ROOM: Final = 1024
"""At first; most answers end long before they have to."""


@dataclass(frozen=True, slots=True)
class _Kept:
    token_keys: tuple[int, ...]
    features_digest: str | None
    sequence: Sequence
    user: weakref.ref[State]
    """Who may still decode from the sequence."""


class GraphedEngine:
    """Prefill and decode of a LLaMA through own kernels, a decode step as one graph."""

    name = "graphed"

    def __init__(
        self, language: LanguageModel, vision: Mapping[str, nn.Module] | None = None, *, tuning: Path | None = None
    ):
        """Takes over the language model's weights, and compares itself with the model's own forward.

        Args:
            language: what to run.
            vision: modules of stage 3 to run as graphs.
            tuning: folder of what was found to be fast; by default in the user's cache.

        Raises:
            Unserved: the model is no LLaMA, or computes something else.
        """
        go_to(language.device)
        self._language = language
        self._end_ids = torch.tensor(language.end_ids, dtype=torch.long, device=language.device)
        with ordinary_tensors():
            llama = find_llama(language)
            tuner = Tuner(llama.device, tuning)
            self._network = Network(llama, tuner)
            self._network.tune(1)
        self._steps: dict[tuple[int, bool, bool], Step] = {}
        self._batches: weakref.WeakSet[GraphedBatch] = weakref.WeakSet()
        self._seats: list[Seats] = []
        self._kept: _Kept | None = None
        self._room = _ROOM
        self._pool = torch.cuda.graph_pool_handle() if llama.device.type == "cuda" else None
        self._prompts = Prompts(self._network, self._pool)
        with ordinary_tensors():
            self._vision = CapturedVision(vision or {}, tuner, self._pool)
        self._eager = EagerEngine(language)
        """For prompts that this engine does not take."""
        self._refused: dict[str, None] = {}
        self._compare()

    @property
    def notes(self) -> tuple[str, ...]:
        """See ``Engine.notes``."""
        return (*self._network.notes, *self._vision.notes, *self._refused)

    @contextmanager
    def encoding(self) -> Iterator[None]:
        """See ``Engine.encoding``."""
        go_to(self._network.llama.device)
        with ordinary_tensors(), self._vision.active():
            yield

    @ordinary_tensors()
    def prefill(self, prompt: Prompt, sampling: Sampling, *, reuse: bool = False) -> Prefilled:
        """See ``Engine.prefill``."""
        go_to(self._network.llama.device)
        if self._refuses(prompt):
            return self._eager.prefill(prompt, sampling, reuse=reuse)
        keys, length = prompt.token_keys if reuse else (), prompt.length
        sequence = self._taken(keys, prompt.features_digest, length)
        reused = sequence.length
        text = prompt.text_after(reused) if reused else None
        if text is not None and len(text) <= MOST_ROWS:
            logits, following = self._prompts.text(text, sequence), length
        else:
            embeds, positions, following = self._prompts.rows(prompt)
            logits = self._prompts([Rows(embeds[reused:], positions[:, reused:], sequence)])[0]
        logits = logits.clone()
        chooser = TokenChooser(sampling, self._end_ids, logits.device)
        token = chooser(logits)
        state = State(sequence, following, chooser.marked().mark)
        if keys:
            self._kept = _Kept(keys, prompt.features_digest, sequence, weakref.ref(state))
        return Prefilled(
            # The host waits here, with nothing left to do.
            token_id=int(token),
            logits=logits,
            prompt_tokens=length,
            reused_prefix_tokens=reused,
            sampling=sampling,
            state=state,
        )

    def decode(self, prefilled: Prefilled, max_new_tokens: int) -> Iterator[int]:
        """See ``Engine.decode``."""
        if not isinstance(prefilled.state, State):
            yield from self._eager.decode(prefilled, max_new_tokens)
            return
        token = prefilled.token_id
        if self.is_end(token) or max_new_tokens == 1:
            yield token
            return
        self._room = min(max(_ROOM, max_new_tokens), _MOST_ROOM)
        answers = self._answers([prefilled], max_new_tokens)
        answers.launch()
        yield token
        for written in range(2, max_new_tokens + 1):
            # The next step is on its way before this one's token is looked at: the device never waits for the host.
            if written < max_new_tokens:
                answers.launch()
            (token,) = answers.land()
            yield token
            if self.is_end(token):
                return

    @ordinary_tensors()
    def answer_batch(self, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> list[tuple[int, ...]]:
        """See ``Engine.answer_batch``."""
        if self._refuses(prompt):
            return self._eager.answer_batch(prompt, sampling, max_new_tokens)
        self._room = min(max(_ROOM, max_new_tokens), _MOST_ROOM)
        rows = [self.prefill(row, sampling) for row in unpadded(prompt)]
        groups = (rows[at : at + MOST_ROWS] for at in range(0, len(rows), MOST_ROWS))
        return list(itertools.chain.from_iterable(self._together(group, max_new_tokens) for group in groups))

    def continuous(self, capacity: int | None = None, *, interleave: bool = False) -> ContinuousBatch:
        """See ``Engine.continuous``."""
        device = self._network.llama.device
        batch = GraphedBatch(
            self._network,
            self._prompts,
            self._seats_for,
            TurnByTurn(self._eager, capacity, interleave=interleave),
            lambda request: self._refuses(request.prompt),
            self._end_ids,
            capacity=capacity,
            interleave=interleave,
            most_bytes=_room_beside(device),
        )
        self._batches.add(batch)
        return batch

    def _seats_for(self, batch: GraphedBatch) -> Seats:
        """Those that nobody has, or new ones."""
        free = (seats for seats in self._seats if seats.user is None or seats.user() is None)
        seats = next(free, None)
        if seats is None:
            captured = functools.partial(Captured, device=self._network.llama.device, pool=self._pool)
            seats = Seats(self._network, captured, self._end_ids)
            self._seats.append(seats)
        seats.user = weakref.ref(batch)
        return seats

    @ordinary_tensors()
    def score(self, prefilled: Prefilled, token_ids: Seq[int]) -> torch.Tensor:
        """See ``Engine.score``."""
        if not isinstance(prefilled.state, State):
            return self._eager.score(prefilled, token_ids)
        rows = [prefilled.logits]
        if len(token_ids) > 1:
            answers = self._answers([prefilled], len(token_ids))
            rows += [answers.forced(token) for token in token_ids[:-1]]
        return torch.stack(rows)

    def is_end(self, token_id: int) -> bool:
        """See ``Engine.is_end``."""
        return token_id in self._language.end_ids

    def close(self) -> None:
        """Frees graphs, kept keys and the memory that both work in; the engine can still be used, and captures again.

        An answer that ``decode`` is still writing keeps its own step, and what that works in, until it is done.
        """
        for batch in list(self._batches):
            batch.close()
        self._seats.clear()
        self._kept = None
        self._steps.clear()
        self._prompts.close()
        self._network.close()
        self._vision.close()
        self._eager.close()
        if self._pool is not None:
            torch.cuda.empty_cache()

    def _refuses(self, prompt: Prompt) -> bool:
        """Whether the prompt needs more than its rows, which only the model's own forward takes; notes that it does."""
        more = [*prompt.decoder_inputs, *prompt.scene_inputs]
        if more:
            self._refused[f"prompts with {', '.join(more)} are answered by engine eager"] = None
        return bool(more)

    def _taken(self, keys: tuple[int, ...], digest: str | None, length: int) -> Sequence:
        """A sequence for a prompt: what can be kept of the last one, or an empty one."""
        kept, room = self._kept, length + self._room
        if kept is None or not keys:
            return new_sequence(self._network.llama, room)
        same = common_prefix(kept.token_keys, keys, same_features=kept.features_digest == digest)
        # One position at least must be computed: its logits give the first token.
        same = min(same, length - 1)
        if kept.user() is None and kept.sequence.capacity >= room:
            # Nobody can decode the earlier question again, so its own positions are free.
            self._kept = None
            kept.sequence.length = same
            return kept.sequence
        return kept.sequence.prefix(same, room)

    def _step(self, rows: int, sampling: Sampling) -> Step:
        key = row_bucket(rows), sampling.temperature == 0, sampling.ignore_eos
        if key not in self._steps:
            network, device = self._network, self._network.llama.device
            network.tune(key[0])
            batch = network.batch(key[0])
            chooser = TokenChooser(sampling, self._end_ids, device)
            greedy, barred = key[1], torch.full((key[0],), sampling.ignore_eos, device=device)
            # Not by way of the engine, which would then hold on to itself.
            end_ids = self._end_ids
            generator = None if greedy else chooser.generator

            def work() -> None:
                network.step(batch)
                if greedy:
                    largest(batch.token, batch.logits, end_ids, barred)
                else:
                    batch.token.copy_(chooser(batch.logits))

            self._steps[key] = Step(batch, chooser, Captured(work, device, self._pool, generator))
        return self._steps[key]

    @ordinary_tensors()
    def _answers(self, rows: Seq[Prefilled], max_new_tokens: int) -> Answers:
        for row in rows:
            row.state.sequence.reserve(row.prompt_tokens + min(max_new_tokens, _MOST_ROOM), row.prompt_tokens)
        return Answers(self._step(len(rows), rows[0].sampling), rows, self._network)

    def _together(self, rows: Seq[Prefilled], max_new_tokens: int) -> list[tuple[int, ...]]:
        answers = [[row.token_id] for row in rows]

        def all_ended() -> bool:
            return all(self.is_end(answer[-1]) for answer in answers)

        if max_new_tokens > 1 and not all_ended():
            batch = self._answers(rows, max_new_tokens)
            batch.launch()
            for written in range(2, max_new_tokens + 1):
                if written < max_new_tokens:
                    batch.launch()
                for answer, token in zip(answers, batch.land(), strict=True):
                    # A row that has ended goes on computing, unseen, until the last one ends.
                    if not self.is_end(answer[-1]):
                        answer.append(token)
                if all_ended():
                    break
        return [tuple(answer) for answer in answers]

    @ordinary_tensors()
    def _compare(self) -> None:
        """Holds passes over few and many rows, which mean nothing, and steps of one against the model's own forward.

        Raises:
            Unserved: it computes something else.
        """
        language, weight = self._language, self._network.llama.embedding
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(len(weight), (_COMPARED,), generator=generator).to(weight.device)
        asked, tokens = Sampling(ignore_eos=True), ids[:3].tolist()

        def prompt(length: int) -> Prompt:
            keys = tuple(ids[:length].tolist())
            positions = None
            if (axes := self._network.axes) > 1:
                # Where all axes agree, it would not show which one turns what.
                count = torch.arange(length, device=ids.device)
                positions = torch.stack([count + 7 * axis * (count < _COMPARED // 2) for axis in range(axes)])[:, None]
            embeds = language.embed(ids[:length])[None]
            return Prompt(inputs_embeds=embeds, token_keys=keys, position_ids=positions)

        theirs = self._eager
        for length, reuse in ((len(ids) - 2, True), (len(ids), True)):
            mine = self.score(self.prefill(prompt(length), asked, reuse=reuse), tokens)
            own = theirs.score(theirs.prefill(prompt(length), asked), tokens)
            apart = float((mine - own).norm() / own.norm())
            # Not a number is far apart.
            if not apart <= _APART[weight.dtype]:
                raise Unserved(f"its logits are {apart:.2g} from the model's own")
        self._kept = None
        theirs.close()


def _room_beside(device: torch.device) -> int:
    """Bytes for keys and values of a continuous batch."""
    if device.type != "cuda":
        return _ROOM_ON_HOST
    free, _ = torch.cuda.mem_get_info(device)
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return max(0, int((free + cached - _ROOM_FOR_WORK) * 0.95))
