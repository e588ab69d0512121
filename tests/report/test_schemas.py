"""The published schemas: as generated, true of every committed and of a new run, and no wider than the reader."""

from __future__ import annotations

import copy
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tests.examples import examples
from unfuse.benchmarking import PROTOCOLS, BenchSettings, ModelSource, RunOptions, bench_several
from unfuse.errors import RunFolderError
from unfuse.loading import load
from unfuse.records import Manifest, Probes, RunFolder, from_line
from unfuse.records.comparison_folder import ComparisonManifest
from unfuse.records.conversion import from_plain, is_newer_minor
from unfuse.report.schemas import schemas, text_of
from unfuse.samples.demo import demo_dataset
from unfuse.staged_model import StagedModel

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "docs" / "schema"
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in schemas().items()}
ANYTHING = st.sampled_from(
    [None, True, False, 0, 7, -3, 0.5, "", "text", "ok", "1.0", "0.9", "2.0", [], [1], ["a"], [[1]], {}, {"a": 1}]
)


def problems(name: str, document: Any) -> list[str]:
    return [f"{list(error.path)}: {error.message[:200]}" for error in VALIDATORS[name].iter_errors(document)]


def problems_of_run(folder: Path) -> list[str]:
    found = []
    for name in ("run", "probes", "summary"):
        path = folder / f"{name}.json"
        if path.exists():
            found += [f"{path}: {each}" for each in problems(name, json.loads(path.read_text()))]
    for number, line in enumerate((folder / "samples.jsonl").read_text().splitlines(), start=1):
        found += [f"{folder} line {number}: {each}" for each in problems("samples", json.loads(line))]
    return found


def problems_of_comparison(folder: Path) -> list[str]:
    found = problems("comparison", json.loads((folder / "comparison.json").read_text()))
    found += problems("comparison-summary", json.loads((folder / "summary.json").read_text()))
    return found + [each for part in folder.glob("*/run.json") for each in problems_of_run(part.parent)]


def test_the_published_schemas_are_these() -> None:
    made = {f"{name}.schema.json": text_of(schema) for name, schema in schemas().items()}
    published = {path.name: path.read_text() for path in PUBLISHED.iterdir()}
    assert published == made, "python -m unfuse.report.schemas docs/schema"


@pytest.mark.parametrize("name", VALIDATORS)
def test_each_is_a_schema(name: str) -> None:
    Draft202012Validator.check_schema(VALIDATORS[name].schema)


def test_fields_are_described() -> None:
    about = schemas()["samples"]["properties"]
    assert about["e2e_host_ms"]["description"] == "The separate, unstaged call on the same sample."
    assert about["decode_device_ms"]["description"].startswith("decode: between device events; null without")


COMMITTED = sorted(path.parent for path in (ROOT / "benchmarks").rglob("run.json"))


def test_committed_runs() -> None:
    """Of older versions, as they were written."""
    versions = {json.loads((folder / "run.json").read_text())["schema_version"] for folder in COMMITTED}
    assert versions >= {"1.0", "1.1"}
    assert not [each for folder in COMMITTED for each in problems_of_run(folder)]
    for path in (ROOT / "benchmarks").rglob("comparison.json"):
        assert not problems_of_comparison(path.parent)


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: str(folder.relative_to(ROOT / "benchmarks")))
def test_runs_of_older_versions_are_read(folder: Path) -> None:
    opened = RunFolder.open(folder)
    lines = (folder / "samples.jsonl").read_text().splitlines()
    assert len(opened.records()) == len(lines) > 0
    assert (opened.read_probes() is None) == (not (folder / "probes.json").exists())


def load_cpu(name: str) -> StagedModel:
    return load(name, device="cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo under every protocol."""
    folder = tmp_path_factory.mktemp("schemas") / "all"
    quick = BenchSettings(output_length=3, num_warmups=1, noise_repeats=1, balance_seconds=0.0)
    source = ModelSource(names=("demo",), load=load_cpu)
    bench_several(source, list(PROTOCOLS), demo_dataset(max_samples=1), quick, RunOptions(output=folder))
    return folder


def test_a_new_run(made: Path) -> None:
    assert not problems_of_comparison(made)
    parts = [path.parent.name for path in made.glob("*/run.json")]
    assert len(parts) == 4, parts


def test_a_run_of_the_version_before_is_read(made: Path, tmp_path: Path) -> None:
    """1.2 is 1.3 without work and ceilings."""
    source = next(path.parent for path in made.glob("*decoupled*/run.json"))
    for path in source.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    manifest = json.loads((source / "run.json").read_text()) | {"schema_version": "1.2"}
    (tmp_path / "run.json").write_text(json.dumps(manifest))
    probes = json.loads((source / "probes.json").read_text())
    assert probes.pop("ceilings")
    assert probes.pop("work")
    del probes["work_sample_id"]
    (tmp_path / "probes.json").write_text(json.dumps(probes))
    assert not [each for each in problems_of_run(tmp_path) if "summary" not in each]
    opened = RunFolder.open(tmp_path).read_probes()
    assert opened is not None
    assert opened.ceilings is None
    assert opened.work == {}


def paths(document: Any) -> list[tuple[Any, ...]]:
    """The path of every value but the document itself."""
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    return [path for key, value in items for path in ((key,), *((key, *rest) for rest in paths(value)))]


def mutated(data: st.DataObject, document: Any) -> Any:
    """Something changed, taken away or added somewhere."""
    document = copy.deepcopy(document)
    path = data.draw(st.sampled_from(paths(document)))
    holder = document
    for key in path[:-1]:
        holder = holder[key]
    what = data.draw(st.sampled_from(["change", "take away", "add"]))
    if what == "change":
        holder[path[-1]] = data.draw(ANYTHING)
    elif what == "take away":
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder["a new field"] = data.draw(ANYTHING)
    return document


def reads(kind: type, document: Any) -> bool:
    try:
        lenient = "schema_version" in kind.__annotations__ and is_newer_minor(document.get("schema_version"), where="")
        assert not lenient
        from_plain(kind, document, where="")
    except RunFolderError:
        return False
    return True


def reads_line(document: Any) -> bool:
    body = json.dumps(document)
    try:
        from_line(f'{body[:-1]}, "line_crc32": {zlib.crc32(body.encode())}}}')
    except RunFolderError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "kind"), [("run", Manifest), ("probes", Probes), ("comparison", ComparisonManifest)], ids=lambda x: str(x)
)
@examples(150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_schema_takes_what_the_reader_takes(made: Path, name: str, kind: type, data: st.DataObject) -> None:
    source = made if name == "comparison" else next(path.parent for path in made.glob("*decoupled*/run.json"))
    document = mutated(data, json.loads((source / f"{name}.json").read_text()))
    assert VALIDATORS[name].is_valid(document) == reads(kind, document), document


@examples(300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_schema_takes_the_lines_that_the_reader_takes(made: Path, data: st.DataObject) -> None:
    source = data.draw(st.sampled_from(sorted(made.glob("*/samples.jsonl"))))
    line = json.loads(source.read_text().splitlines()[-1])
    del line["line_crc32"]
    document = mutated(data, line)
    assert VALIDATORS["samples"].is_valid({**document, "line_crc32": 1}) == reads_line(document), document


@examples(100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_summary_lacks_nothing(made: Path, data: st.DataObject) -> None:
    """No field of a summary of this version may be missing or unknown."""
    source = next(path.parent for path in made.glob("*decoupled*/run.json"))
    summary = json.loads((source / "summary.json").read_text())
    name = data.draw(st.sampled_from(sorted(summary)))
    assert problems("summary", {key: value for key, value in summary.items() if key != name})
    assert problems("summary", {**summary, "new": 1})
    assert problems("summary", {**summary, "num_ok": "1"})
