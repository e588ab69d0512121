"""The demo's scenes, dialogue and folders."""

from __future__ import annotations

import hashlib
from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.examples import examples
from unfuse.errors import DatasetError, FileAccessError
from unfuse.events import event_frames, read_events
from unfuse.samples import read_dataset
from unfuse.samples.demo import demo_checkpoint, demo_dataset, demo_sample, tokenizer_model
from unfuse.samples.demo.dialogue import describe, draw_turns, turns
from unfuse.samples.demo.folder import demo_rows, write_demo_dataset
from unfuse.samples.demo.scenes import CAMERAS, DIRECTIONS, PLACES, _at, _touch, demo_scene
from unfuse.samples.media import read_image
from unfuse.samples.simulator import SHAPES, simulate
from unfuse.stages import DEFAULT_QUESTION

SEEDS = st.integers(0, 2**31)


@given(SEEDS)
def test_a_scene_agrees_with_its_facts(seed):
    scene, facts = demo_scene(seed)
    assert demo_scene(seed) == (scene, facts)
    assert sorted(m.shape for m in scene.movers) == sorted(m.shape for m in facts.movers)
    assert len({m.shape for m in facts.movers}) == len(facts.movers)
    assert facts.flicker == bool(scene.flickers)
    assert scene.camera_moves == (facts.camera != "still")
    by_shape = {m.shape: m for m in facts.movers}
    speeds = {}
    for mover in scene.movers:
        fact = by_shape[mover.shape]
        (x0, y0, r0), (x1, y1, r1) = _at(mover, 0.0), _at(mover, 0.05)
        seen = {"left": x0 - x1, "right": x1 - x0, "up": y0 - y1, "down": y1 - y0, "closer": r1 - r0, "away": r0 - r1}
        assert max(seen, key=seen.get) == fact.direction
        assert seen[fact.direction] > 8, "enough of it to be seen"
        assert fact.place == PLACES[int((x0 + x1) / 2 // (640 / 3))]
        speeds[mover.shape] = np.hypot(*mover.velocity)
        for x, y, r in ((x0, y0, r0), (x1, y1, r1)):
            assert x - r > 80
            assert x + r < 560
            assert y - r > 0
            assert y + r < 480
    assert not any(_touch(a, b) for a, b in combinations(scene.movers, 2))
    if facts.fastest:
        others = [speed for shape, speed in speeds.items() if shape != facts.fastest]
        assert speeds[facts.fastest] > 1.5 * max(others)


def test_every_fact_occurs_and_contrast_is_independent_of_direction():
    found, bright = Counter(), {direction: [] for direction in DIRECTIONS}
    for seed in range(3000):
        scene, facts = demo_scene(seed)
        found.update([facts.camera, f"flicker {facts.flicker}", f"count {len(facts.movers)}", f"fast {facts.fastest}"])
        directions = {m.shape: m.direction for m in facts.movers}
        for mover in scene.movers:
            found.update([mover.shape, directions[mover.shape]])
            bright[directions[mover.shape]].append(mover.intensity > 0.35)
    for name in (*CAMERAS, *DIRECTIONS, *SHAPES, *(f"fast {shape}" for shape in SHAPES), "flicker True", "count 0"):
        assert found[name] > 60, name
    for direction, flags in bright.items():
        assert 0.42 < np.mean(flags) < 0.58, direction


def test_one_frame_does_not_show_direction():
    """A bright disc that moves right and a dark one that moves left paint nearly the same frame."""
    from dataclasses import replace

    scene = next(
        scene
        for scene, facts in map(demo_scene, range(1000))
        if facts.camera == "still" and not facts.flicker and [m.direction for m in facts.movers] == ["right"]
    )
    (mover,) = scene.movers
    half = mover.velocity[0] * 0.025
    middle = (mover.position[0] + half, mover.position[1])
    frames = {}
    for name, sign, intensity in (("bright", 1, 0.9), ("dark", -1, 0.02), ("opposite", -1, 0.9)):
        velocity = (sign * mover.velocity[0], 0.0)
        moved = replace(mover, position=(middle[0] - sign * half, middle[1]), velocity=velocity, intensity=intensity)
        frames[name] = event_frames(simulate(replace(scene, movers=(moved,))))[2]

    def red_minus_blue(frame):
        x = np.arange(frame.shape[1])
        red = (frame[:, :, 1] == 0) & (frame[:, :, 0] == 255)
        blue = (frame[:, :, 1] == 0) & (frame[:, :, 2] == 255)
        return (red.sum(0) @ x) / red.sum() - (blue.sum(0) @ x) / blue.sum()

    assert np.sign(red_minus_blue(frames["bright"])) == np.sign(red_minus_blue(frames["dark"]))
    assert np.sign(red_minus_blue(frames["bright"])) != np.sign(red_minus_blue(frames["opposite"]))


@given(SEEDS)
@examples(40)
def test_answers_are_sentences_of_10_to_60_tokens(seed):
    import sentencepiece

    tokenizer = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_model())
    found = turns(demo_scene(seed)[1])
    assert DEFAULT_QUESTION in {turn.question for turn in found}
    assert len({turn.question for turn in found}) == len(found), "a question has one answer"
    for turn in found:
        assert turn.answer[0].isupper()
        assert turn.answer.endswith(".")
        assert 10 <= len(tokenizer.encode(turn.answer)) + 1 <= 60, turn
    phrasings = Counter(turn.kind for turn in found)
    assert min(phrasings.values()) >= 4


def test_drawn_turns_are_of_different_kinds():
    facts = demo_scene(7)[1]
    drawn = draw_turns(facts, np.random.default_rng(0), 6)
    assert len({turn.kind for turn in drawn}) == 6
    assert drawn == draw_turns(facts, np.random.default_rng(0), 6)
    assert len(draw_turns(facts, np.random.default_rng(0), 40)) == 40


def test_demo_recordings():
    dataset = demo_dataset()
    assert [sample.sample_id for sample in dataset.samples] == [f"demo:{i}" for i in range(8)]
    dataset.check_media()
    for sample in dataset.samples:
        stream = read_events(sample.event_data)
        assert 10_000 < len(stream) < 1_000_000
        assert stream.duration_us < 50_001
        assert sample.reference
    with pytest.raises(DatasetError, match="demo:0 to demo:7"):
        demo_sample("demo:9")


def test_the_shipped_checkpoint_is_small():
    folder = demo_checkpoint()
    assert (folder / "model.safetensors").stat().st_size <= 16 * 2**20
    assert sum(path.stat().st_size for path in folder.parent.rglob("*")) < 17 * 2**20


def digests(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_data_set_folder(tmp_path):
    out, rows, progress = tmp_path / "set", demo_rows(3), []
    write_demo_dataset(out, rows, workers=1, done=progress.append)
    assert progress == [1, 2, 3]
    data = read_dataset(out)
    data.check_media(events=True, video=True)
    assert [sample.sample_id for sample in data.samples] == [row.sample_id for row in rows]
    for sample, row in zip(data.samples, rows, strict=True):
        assert (sample.question, sample.reference) == (row.question, row.answer)
        frames = event_frames(read_events(sample.event_data))
        for frame, path in zip(frames, sample.event_image, strict=True):
            np.testing.assert_array_equal(frame, read_image(path))
        assert len(sample.video_files) == 10
    before = digests(out)
    write_demo_dataset(out, rows, workers=2)
    assert digests(out) == before, "a second call changes nothing"


def test_an_interrupted_dataset_is_finished(tmp_path):
    whole, interrupted = tmp_path / "whole", tmp_path / "interrupted"
    rows = demo_rows(3, first_seed=60_000_000)
    write_demo_dataset(whole, rows, workers=2)

    def stop(number):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo_dataset(interrupted, rows, workers=1, done=stop)
    with pytest.raises(DatasetError, match="found another data set"):
        write_demo_dataset(interrupted, demo_rows(4), workers=1)
    write_demo_dataset(interrupted, rows, workers=1)
    assert digests(interrupted) == digests(whole), "and does not depend on the number of processes"


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(DatasetError, match="other files"):
        write_demo_dataset(tmp_path, demo_rows(1))
    with pytest.raises(FileAccessError):
        write_demo_dataset(tmp_path / "mine.txt" / "below", demo_rows(1))


def test_descriptions_differ():
    assert len({describe(demo_scene(seed)[1]) for seed in range(200)}) > 100
