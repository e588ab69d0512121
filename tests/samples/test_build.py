"""Datasets of windows of recordings: exact, stable, resumable; checked and described."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image

from tests.started import wait_for
from unfuse.cli import run
from unfuse.errors import DatasetError, InputError
from unfuse.events import event_frames, read_events, write_eventgpt_npy
from unfuse.locks import FileLock
from unfuse.samples import read_dataset
from unfuse.samples.build import Windowing, parse_time, plan, write_dataset
from unfuse.samples.dataset import MANIFEST_NAME, find_defects
from unfuse.samples.description import contact_sheet, describe_dataset
from unfuse.samples.media import read_image
from unfuse.samples.sources import find_recordings
from unfuse.samples.video import count_frames
from unfuse.testing import synthetic_stream

STREAM = synthetic_stream(40_000, size=(640, 480), duration_us=400_000)
OFFSET = 50_000_000_000


def write_sequence(root, name="thun_00_a", *, pictures=True):
    """DSEC's layout with a small camera at 50 Hz."""
    sequence = root / "test" / name
    events = sequence / "events" / "left"
    events.mkdir(parents=True)
    with h5py.File(events / "events.h5", "w") as file:
        for column, dtype in (("x", "u2"), ("y", "u2"), ("t", "u4"), ("p", "u1")):
            file[f"events/{column}"] = getattr(STREAM, column).astype(dtype)
        file["ms_to_idx"] = np.searchsorted(STREAM.t, np.arange(400) * 1000).astype("u8")
        file["t_offset"] = np.int64(OFFSET)
    if pictures:
        (sequence / "images" / "left" / "rectified").mkdir(parents=True)
        times = range(0, 400_000, 20_000)
        for number, _ in enumerate(times):
            picture = np.full((36, 49, 3), 10 * number, np.uint8)
            Image.fromarray(picture).save(sequence / "images" / "left" / "rectified" / f"{number:06d}.png")
        (sequence / "images" / "timestamps.txt").write_text("\n".join(str(OFFSET + t) for t in times))
    return sequence


def digests(folder):
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(folder):
    return {name: digest for name, (digest, _) in digests(folder).items()}


def test_windows_of_a_sequence_are_a_brute_force_slice(tmp_path):
    write_sequence(tmp_path)
    out = tmp_path / "out"
    found = plan(find_recordings(tmp_path), Windowing(window_us=100_000, stride=50_000))
    write_dataset(out, found, workers=1)
    data = read_dataset(out)
    assert len(data.samples) == 7
    assert find_defects(out) == []
    for number, sample in enumerate(data.samples):
        start = number * 50_000
        inside = (STREAM.t >= start) & (STREAM.t < start + 100_000)
        got = read_events(sample.event_data)
        for column in "xytp":
            assert_array_equal(getattr(got, column), getattr(STREAM, column)[inside])
        for path, frame in zip(sample.event_image, event_frames(got), strict=True):
            assert_array_equal(read_image(path), frame)
        taken = [k for k in range(20) if start <= k * 20_000 < start + 100_000]
        assert [path.name for path in sample.video_files] == [f"{k:06d}.png" for k in taken]
        assert count_frames(sample.video) == len(taken)
        assert sample.question == "What are the key elements in this scene?"
    rows = json.loads((out / MANIFEST_NAME).read_text())
    assert {row["split"] for row in rows} == {"test"}
    assert len({row["window"].pop("source_sha256") for row in rows}) > 1, "each window has pictures of its own"
    assert rows[1]["window"] == {
        "start_us": 50_000,
        "stop_us": 150_000,
        "events": len(read_events(data.samples[1].event_data)),
        "rectified": False,
    }


def test_again_changes_nothing_and_processes_do_not_matter(tmp_path):
    write_sequence(tmp_path)
    found = plan(find_recordings(tmp_path), Windowing(window_us=100_000))
    write_dataset(tmp_path / "one", found, workers=1)
    write_dataset(tmp_path / "two", found, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    before = digests(tmp_path / "one")
    write_dataset(tmp_path / "one", found, workers=2)
    assert digests(tmp_path / "one") == before, "not even written again"
    with pytest.raises(DatasetError, match="another data set"):
        write_dataset(tmp_path / "one", plan(find_recordings(tmp_path), Windowing(window_us=200_000)))


@pytest.mark.parametrize("files", [0, 3])
def test_a_killed_build_is_finished_by_the_same_command(tmp_path, files):
    """Killed once there is a folder, and once there are some files in it."""
    write_sequence(tmp_path)
    out, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "unfuse", "dataset", "build", str(tmp_path / "test"), str(out), "--window", "20ms"]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    wait_for(lambda: out.exists() and sum(1 for path in out.rglob("*") if path.is_file()) >= files)
    os.killpg(process.pid, 9)
    process.wait()
    assert run([*command[3:], "--workers", "1"]) == 0
    write_dataset(whole, plan(find_recordings(tmp_path), Windowing(window_us=20_000)), workers=1)
    assert contents(out) == contents(whole), "no temporary file is left"


def test_a_folder_with_the_first_temporary_file_of_a_killed_build_is_new(tmp_path):
    write_sequence(tmp_path)
    found = plan(find_recordings(tmp_path), Windowing(window_us=100_000))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "..begun.json.0a1b2c3d.partial").touch()
    write_dataset(tmp_path / "out", found, workers=1)
    write_dataset(tmp_path / "whole", found, workers=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with pytest.raises(DatasetError, match="a folder with other files in it"):
        write_dataset(tmp_path / "other", found, workers=1)


@pytest.mark.parametrize("step", [None, 3_000, 9_000])
def test_windows_of_events(tmp_path, step):
    write_eventgpt_npy(tmp_path / "rec one.npy", STREAM)
    found = plan(find_recordings(tmp_path / "rec one.npy"), Windowing(window_us=None, events=6_000, stride=step))
    write_dataset(tmp_path / "out", found, ["What moves?", "Where to?"], workers=1)
    data = read_dataset(tmp_path / "out")
    starts = range(0, 40_001 - 6_000, step or 6_000)
    assert len(data.samples) == 2 * len(starts)
    assert len({sample.sample_id for sample in data.samples}) == len(data.samples)
    assert [sample.question for sample in data.samples[:2]] == ["What moves?", "Where to?"]
    for sample, start in zip(data.samples[::2], starts, strict=True):
        assert_array_equal(read_events(sample.event_data).t, STREAM.t[start : start + 6_000])
        assert sample.sample_id.startswith(f"rec_one-{start:010d}-{start + 6000:010d}")


def test_a_recording_in_any_format_gives_the_same_windows(tmp_path):
    write_sequence(tmp_path, pictures=False)
    write_eventgpt_npy(tmp_path / "thun_00_a.npy", STREAM)
    windowing = Windowing(window_us=70_000)
    write_dataset(tmp_path / "a", plan(find_recordings(tmp_path / "test"), windowing), workers=1)
    write_dataset(tmp_path / "b", plan(find_recordings(tmp_path / "thun_00_a.npy"), windowing), workers=2)
    rows = []
    for name in "ab":
        rows.append(json.loads((tmp_path / name / MANIFEST_NAME).read_text()))
        (tmp_path / name / MANIFEST_NAME).unlink()
        assert len({row["window"].pop("source_sha256") for row in rows[-1]}) == 1
    assert rows[0] == rows[1]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("changed", "at"),
    [
        ("events/left/events.h5", -8),
        ("images/left/rectified/000007.png", -3),
    ],  # the lowest byte of t_offset, a checksum
)
def test_a_source_that_changed_is_another_data_set(tmp_path, changed, at, finished):
    """Its size and time are those of before: windows of two recordings would stand side by side."""
    sequence = write_sequence(tmp_path)
    windowing = Windowing(window_us=100_000)
    write_dataset(tmp_path / "out", plan(find_recordings(tmp_path / "test"), windowing), workers=1)
    if not finished:
        (tmp_path / "out" / MANIFEST_NAME).rename(tmp_path / "out" / ".begun.json")
    before = (sequence / changed).stat()
    with (sequence / changed).open("r+b") as file:
        file.seek(at, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(at, os.SEEK_END)
        file.write(bytes([byte ^ 1]))
    os.utime(sequence / changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = plan(find_recordings(tmp_path / "test"), windowing)
    with pytest.raises(DatasetError, match=r"another data set \(row \d has another (window|\S+_data) than 'thun"):
        write_dataset(tmp_path / "out", again, workers=1)


def test_two_builds_of_one_folder(tmp_path, monkeypatch):
    write_sequence(tmp_path)
    found = plan(find_recordings(tmp_path), Windowing(window_us=100_000))
    out = tmp_path / "out"
    out.mkdir()
    monkeypatch.setattr("unfuse.samples.writing._CLAIM_S", 0.01)
    other = FileLock(out / ".begun.lock")
    with pytest.raises(DatasetError, match="another process writing to it"):
        write_dataset(out, found, workers=1)
    other.share()  # the other has claimed the folder, and writes
    (out / ".begun.json").write_text(json.dumps([]) + "\n")
    with pytest.raises(DatasetError, match="another data set"):
        write_dataset(out, found, workers=1)
    (out / ".begun.json").unlink()
    (out / "mp4").mkdir()
    (out / "mp4" / ".other.mp4.0a1b2c3d.partial").touch()
    (out / "mp4").rename(tmp_path / "mp4")
    write_dataset(out, found, workers=1)
    assert (out / ".begun.lock").exists(), "the other still holds it"
    (tmp_path / "mp4" / ".other.mp4.0a1b2c3d.partial").rename(out / "mp4" / ".other.mp4.0a1b2c3d.partial")
    (out / MANIFEST_NAME).rename(out / ".begun.json")
    write_dataset(out, found, workers=1)
    assert list(out.rglob("*.partial")), "the file that the other is writing is left alone"
    other.release()
    (out / MANIFEST_NAME).rename(out / ".begun.json")
    write_dataset(out, found, workers=1)
    assert not list(out.rglob(".*")), "no lock and no temporary file is left"


def test_processes_end_with_a_killed_build(tmp_path):
    write_sequence(tmp_path)
    command = ["unfuse", "dataset", "build", str(tmp_path / "test"), str(tmp_path / "out"), "--window", "1ms"]
    process = subprocess.Popen([sys.executable, "-m", *command, "--workers", "2"], stdout=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "out").exists() and len(list((tmp_path / "out").rglob("*.npy"))) > 2)
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    process.kill()
    process.wait()
    assert len(children) >= 2
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))


def test_rectified_events_are_where_the_map_says(tmp_path):
    sequence = write_sequence(tmp_path, pictures=False)
    found = find_recordings(tmp_path)
    with pytest.raises(DatasetError, match="rectify map"):
        plan(found, Windowing(window_us=100_000, rectify=True))
    y, x = np.mgrid[:480, :640]
    rectified = np.stack([x * 1.1 - 20.3, y * 0.9 + 3.2], 2).astype("f4")
    rectified[100, 100] = np.nan
    path = sequence / "events" / "left" / "rectify_map.h5"
    with h5py.File(path, "w") as file:
        file["rectify_map"] = rectified
    write_dataset(tmp_path / "out", plan(found, Windowing(window_us=400_000, rectify=True)), workers=1)
    (sample,) = read_dataset(tmp_path / "out").samples
    got = read_events(sample.event_data)
    expected = []
    for column, row, t, p in zip(*(getattr(STREAM, c).tolist() for c in "xytp"), strict=True):
        to = rectified[row, column]
        if np.isfinite(to).all():
            to = np.rint(to).astype(int)
            if 0 <= to[0] < 640 and 0 <= to[1] < 480:
                expected.append((*to.tolist(), t, p))
    assert len(expected) < len(STREAM)
    assert list(zip(*(getattr(got, c).tolist() for c in "xytp"), strict=True)) == expected
    with h5py.File(path, "w") as file:
        file["rectify_map"] = rectified[:3]
    with pytest.raises(InputError, match="rectify_map of"):
        write_dataset(tmp_path / "other", plan(found, Windowing(window_us=400_000, rectify=True)), workers=1)


def test_windows_without_events_are_left_out_and_counted(tmp_path):
    early = STREAM.slice(0, 4_000)
    late = replace(early, t=early.t + 300_000)
    both = type(early).from_arrays(*(np.concatenate([getattr(early, c), getattr(late, c)]) for c in "xytp"))
    write_eventgpt_npy(tmp_path / "a.npy", both)
    found = plan(find_recordings(tmp_path / "a.npy"), Windowing(window_us=20_000))
    assert found.left_out > 5
    write_dataset(tmp_path / "out", found, workers=1)
    assert len(read_dataset(tmp_path / "out").samples) == found.count


def test_every_defect_is_reported(tmp_path):
    write_sequence(tmp_path)
    out = tmp_path / "out"
    write_dataset(out, plan(find_recordings(tmp_path), Windowing(window_us=100_000)), workers=1)
    rows = json.loads((out / MANIFEST_NAME).read_text())
    (out / "event_npy" / rows[0]["event_data"]).write_bytes(b"junk")
    (out / "event_image" / rows[0]["event_image"][1]).unlink()
    (out / "event_image" / rows[1]["event_image"][4]).write_bytes(b"\x89PNG")
    (out / "mp4" / rows[2]["mp4_data"]).write_bytes(b"")
    for picture in (out / "video" / rows[3]["video_data"]).iterdir():
        picture.unlink()
    secret = tmp_path / "secret.npy"
    write_eventgpt_npy(secret, STREAM)
    (out / "event_npy" / "link.npy").symlink_to(secret)
    rows += [
        {**rows[3], "event_data": "link.npy"},
        {**rows[3]},
        "text",
        {"id": "empty"},
        {"id": "e", "event_data": "../x"},
    ]
    (out / MANIFEST_NAME).write_text(json.dumps(rows))
    text = "\n".join(str(defect) for defect in find_defects(out))
    for words in (
        "an unknown format that starts with 6a 75 6e 6b",
        "thun_00_a/000000_1.png",
        "000001_4.png",
        "000002.mp4",
        "no pictures",
        "a link to elsewhere",
        "again, expected each once",
        "row 6: found str",
        "row 7: found no media",
        "'../x'",
    ):
        assert words in text, text
    assert run(["dataset", "check", str(out)]) == 1
    with pytest.raises(DatasetError):
        read_dataset(out)


def test_description(tmp_path, capsys):
    write_sequence(tmp_path)
    out, picture = tmp_path / "out", tmp_path / "sheet.png"
    write_dataset(out, plan(find_recordings(tmp_path), Windowing(window_us=100_000)), ["a?", "b?"], workers=1)
    described = describe_dataset(out)
    assert described.samples == 8
    assert described.questions == 2
    assert sum(one.events for one in described.recordings) == len(STREAM)
    assert contact_sheet(described).shape == (252, 988, 3)
    assert run(["dataset", "info", str(out), "--picture", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "8 samples, 4 recordings, 2 questions" in printed
    assert "40,000" in printed
    assert_array_equal(read_image(picture), contact_sheet(described))
    assert run(["dataset", "check", str(out)]) == 0
    assert "8 rows, 0 defects" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "1 hour"], "1s"),
        (["--window", "0.0001us"], "1s"),
        (["--window", "10s"], "no window with events"),
        (["--events", "0"], "at least 1"),
        (["--events", "10", "--stride", "1ms"], "a number of events"),
        (["--stride", "0ms"], "1s"),
        (["--frames", "0"], "frames"),
        (["--max-windows", "0"], "max-windows"),
        (["--workers", "-1"], "workers"),
        (["--questions", "none.txt"], "a file of questions"),
    ],
)
def test_bad_options_are_one_line(tmp_path, capsys, arguments, message):
    write_eventgpt_npy(tmp_path / "a.npy", STREAM)
    code = run(["dataset", "build", str(tmp_path / "a.npy"), str(tmp_path / "out"), *arguments])
    error = capsys.readouterr().err
    assert code == 2
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: (s / "images" / "timestamps.txt").write_text("1 2 3"), "3 times for 20 pictures"),
        (lambda s: (s / "images" / "timestamps.txt").unlink(), "pictures without times"),
        (lambda s: (s / "events" / "left" / "events.h5").unlink(), "no events/left/events.h5"),
        (lambda s: (s / "events" / "left" / "events.h5").write_bytes(b"junk"), "unknown format"),
    ],
)
def test_a_damaged_sequence(tmp_path, change, message):
    sequence = write_sequence(tmp_path)
    change(sequence)
    with pytest.raises(InputError, match=message):
        plan(find_recordings(tmp_path), Windowing(window_us=100_000))


def test_times():
    assert [parse_time(text) for text in ("1s", "500ms", "50 ms", "250us", "0.5s")] == [
        1_000_000, 500_000, 50_000, 250, 500_000,
    ]  # fmt: skip
