"""A run folder stores its records, overwrites nothing and refuses records of other runs."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from unfuse.errors import RunFolderError
from unfuse.records import Manifest, RunFolder, SampleRecord, folder, read_manifest, refuse_occupied, run_dir
from unfuse.records.comparison_folder import ComparisonFolder

MakeManifest = Callable[..., Manifest]
MakeRecord = Callable[..., SampleRecord]


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.iterdir()}


def fail_with(number: int) -> Callable[..., Any]:
    def call(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


def test_create_append_open(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    records = [
        make_record("a", warmup=True),
        make_record("a"),
        make_record("b", status="failed", error="no file"),
    ]
    with RunFolder.create(tmp_path / "runs" / "first", make_manifest()) as run:
        for record in records:
            run.append(record)
        assert run.done_ids == {"a", "b"}
        run.write_summary({"count": 2})
        run.write_text("report.md", "# report")
    again = RunFolder.open(str(tmp_path / "runs" / "first"))
    assert again.records() == records
    assert again.manifest == make_manifest()
    assert again.done_ids == {"a", "b"}
    assert again.torn_bytes() == 0
    assert again.read_summary() == {"count": 2}
    assert (again.path / "report.md").read_text() == "# report"


def test_open_is_for_reading(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    RunFolder.create(tmp_path / "run", make_manifest()).close()
    with pytest.raises(RunFolderError, match="opened for reading"):
        RunFolder.open(tmp_path / "run").append(make_record())


def test_a_run_is_never_overwritten(tmp_path: Path, make_manifest: MakeManifest) -> None:
    RunFolder.create(tmp_path / "run", make_manifest()).close()
    before = contents(tmp_path / "run")
    for attempt in (
        lambda: RunFolder.create(tmp_path / "run", make_manifest()),
        lambda: refuse_occupied(tmp_path / "run"),
    ):
        with pytest.raises(RunFolderError, match="--resume or give another --output"):
            attempt()
    assert contents(tmp_path / "run") == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_folder_with_the_first_temporary_file_of_a_killed_run_is_new(
    tmp_path: Path, make_manifest: MakeManifest
) -> None:
    for name in ("run", "comparison"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f".{name}.json.0a1b2c3d.partial").touch()
    RunFolder.create(tmp_path / "run", make_manifest()).close()
    ComparisonFolder.create(
        tmp_path / "comparison", [("demo", "fused")], common={}, created="2026-01-01T00:00:00+00:00", command=()
    )
    assert not list(tmp_path.rglob("*.partial"))


def test_other_files_are_not_touched(tmp_path: Path, make_manifest: MakeManifest) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="files that are no run") as caught:
        RunFolder.create(tmp_path, make_manifest())
    assert "--resume" not in str(caught.value)
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_an_empty_folder_will_do(tmp_path: Path, make_manifest: MakeManifest) -> None:
    (tmp_path / "empty").mkdir()
    RunFolder.create(tmp_path / "empty", make_manifest()).close()
    assert read_manifest(tmp_path / "empty") == make_manifest()


@pytest.mark.parametrize("path", ["file", "file/run"])
def test_a_file_in_the_way(tmp_path: Path, make_manifest: MakeManifest, path: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError, match="Not a directory"):
        RunFolder.create(tmp_path / path, make_manifest())
    assert contents(tmp_path) == {"file": b"mine"}


@pytest.mark.parametrize("call", ["fsync", "write"])
def test_a_failed_start_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_manifest: MakeManifest, call: str
) -> None:
    monkeypatch.setattr(os, call, fail_with(errno.ENOSPC))
    with pytest.raises(RunFolderError, match="No space left"):
        RunFolder.create(tmp_path / "new" / "runs" / "first", make_manifest())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("step", ["sync_folder", "write_manifest", "SamplesWriter"])
def test_a_start_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_manifest: MakeManifest, step: str
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder if step == "SamplesWriter" else run_dir, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        RunFolder.create(tmp_path / "new" / "first", make_manifest())
    assert not list(tmp_path.iterdir())


def test_a_manifest_without_json_form_leaves_nothing(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with pytest.raises(RunFolderError, match="temperature"):
        RunFolder.create(tmp_path / "run", make_manifest(config={"temperature": float("nan")}))
    assert not list(tmp_path.iterdir())


def test_an_error_before_the_first_sample_takes_the_folder_away(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with pytest.raises(ZeroDivisionError), RunFolder.create(tmp_path / "runs" / "first", make_manifest()):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_an_error_after_it_keeps_the_sample(
    tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord
) -> None:
    with suppress(ZeroDivisionError), RunFolder.create(tmp_path / "run", make_manifest()) as run:
        run.append(make_record())
        raise ZeroDivisionError
    assert RunFolder.open(tmp_path / "run").records() == [make_record()]


def test_a_second_record_of_a_sample_is_refused(
    tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord
) -> None:
    with RunFolder.create(tmp_path / "run", make_manifest()) as run:
        run.append(make_record("a"))
        with pytest.raises(RunFolderError, match="'a' already"):
            run.append(make_record("a"))
        assert len(run.records()) == 1


def test_resume_continues(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    with RunFolder.create(tmp_path / "run", make_manifest()) as run:
        run.append(make_record("a"))
        run.append(make_record("b", warmup=True))
    samples = tmp_path / "run" / "samples.jsonl"
    before = samples.read_bytes()
    samples.write_bytes(before + b'{"sample_id": "b", "sta')
    assert RunFolder.open(tmp_path / "run").torn_bytes() == 23
    second = make_manifest(created="2026-01-24T00:00:00+00:00", command=("unfuse", "bench", "--resume"), run_id="x")
    with RunFolder.resume(tmp_path / "run", second) as run:
        assert run.done_ids == {"a"}
        assert samples.read_bytes() == before
        run.append(make_record("b"))
    assert samples.read_bytes().startswith(before)
    again = RunFolder.open(tmp_path / "run")
    assert [r.sample_id for r in again.records()] == ["a", "b", "b"]
    assert again.manifest == make_manifest(resumed=("2026-01-24T00:00:00+00:00",))


def changed(part: str, **values: Any) -> Callable[[Manifest], dict[str, Any]]:
    return lambda manifest: {part: {**getattr(manifest, part), **values}}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (changed("model", fingerprint="0" * 64), 'model.fingerprint: recorded "fff'),
        (changed("model", dtype="bfloat16"), 'model.dtype: recorded "float32", now "bfloat16"'),
        (changed("model", device="cuda:0"), "model.device"),
        (changed("model", engine="graphed"), "model.engine"),
        (changed("dataset", num_samples=99), "dataset.num_samples: recorded"),
        (changed("dataset", sha256="e" * 64), "dataset.sha256"),
        (changed("config", max_new_tokens=512), "config.max_new_tokens: recorded 64, now 512"),
        (changed("config", reuse=True), "config.reuse: recorded nothing, now true"),
        (changed("environment", device_name="another"), "environment.device_name"),
        (changed("environment", code_version={"unfuse": "0.2.0"}), "environment.code_version.unfuse"),
        (lambda _: {"protocol": "fused"}, 'protocol: recorded "decoupled", now "fused"'),
        (lambda _: {"schema_version": "1.99"}, "schema_version"),
    ],
)
def test_resume_refuses_another_run(
    tmp_path: Path, make_manifest: MakeManifest, change: Callable[[Manifest], dict[str, Any]], named: str
) -> None:
    RunFolder.create(tmp_path / "run", make_manifest()).close()
    before = contents(tmp_path / "run")
    with pytest.raises(RunFolderError) as caught:
        RunFolder.resume(tmp_path / "run", make_manifest(**change(make_manifest())))
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path / "run") == before


def test_resume_names_every_difference(tmp_path: Path, make_manifest: MakeManifest) -> None:
    RunFolder.create(tmp_path / "run", make_manifest()).close()
    other = make_manifest(protocol="fused", config={"seed": 1})
    with pytest.raises(
        RunFolderError, match=r"protocol: .*; config.max_new_tokens: .*; config.seed: recorded 0, now 1"
    ):
        RunFolder.resume(tmp_path / "run", other)


def test_where_a_run_lies_is_no_difference(tmp_path: Path, make_manifest: MakeManifest) -> None:
    config = make_manifest().config
    RunFolder.create(tmp_path / "run", make_manifest(config={**config, "resume": False, "output": "a"})).close()
    moved = make_manifest(
        config={**config, "resume": True, "output": "b"}, dataset={"path": "x", "sha256": "d" * 64, "num_samples": 3}
    )
    RunFolder.resume(tmp_path / "run", moved).close()


def test_resume_needs_a_run(tmp_path: Path, make_manifest: MakeManifest) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(RunFolderError, match=r"no run\.json"):
            RunFolder.resume(path, make_manifest())
    assert not list(tmp_path.iterdir())


def test_one_writer(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with RunFolder.create(tmp_path / "run", make_manifest()) as run:
        with pytest.raises(RunFolderError, match="another process"):
            RunFolder.resume(tmp_path / "run", make_manifest())
        child = (
            "from unfuse.records import RunFolder; import sys; r = RunFolder.open(sys.argv[1]);"
            "RunFolder.resume(sys.argv[1], r.manifest)"
        )
        done = subprocess.run([sys.executable, "-c", child, str(run.path)], capture_output=True, text=True, check=False)
        assert "another process writing to it" in done.stderr
    RunFolder.resume(tmp_path / "run", make_manifest()).close()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"schema_version": "1.0"}', '{"schema_version": NaN}', "\xff", "[" * 10**5]
)
def test_a_damaged_manifest_is_one_typed_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError, match=r"run\.json"):
        RunFolder.open(tmp_path)


@pytest.mark.parametrize("version", ["2.0", "0.9", "1", 1.0, None, "1.0.0"])
def test_another_major_version_is_named(tmp_path: Path, make_manifest: MakeManifest, version: Any) -> None:
    RunFolder.create(tmp_path / "run", make_manifest(schema_version=version)).close()
    with pytest.raises(RunFolderError, match=r"schema_version: found .*, expected 1\.x"):
        RunFolder.open(tmp_path / "run")


def test_a_newer_minor_version_is_read(tmp_path: Path, make_manifest: MakeManifest, make_record: MakeRecord) -> None:
    with RunFolder.create(tmp_path / "run", make_manifest(schema_version="1.7")) as run:
        run.append(make_record())
    path = tmp_path / "run" / "run.json"
    path.write_text(path.read_text().replace('"protocol"', '"later": 1, "protocol"'))
    assert RunFolder.open(tmp_path / "run").records() == [make_record()]
    path.write_text(path.read_text().replace("1.7", "1.0"))
    with pytest.raises(RunFolderError, match="'later'"):
        RunFolder.open(tmp_path / "run")


def test_no_summary_yet(tmp_path: Path, make_manifest: MakeManifest) -> None:
    with (
        RunFolder.create(tmp_path / "run", make_manifest()) as run,
        pytest.raises(RunFolderError, match="--resume"),
    ):
        run.read_summary()


def test_imports_no_torch() -> None:
    code = "import sys, unfuse.records; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
