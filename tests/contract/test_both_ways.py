"""Every option of every verb, from Python and on the command line: the same job, or the same refusal."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import click
import pytest

import unfuse
import unfuse.api
from unfuse.api import answering, benchmarking, verifying
from unfuse.cli import cli, run
from unfuse.errors import UnfuseError
from unfuse.samples import Sample

SAME = {
    "bench": [
        (["demo"], {"models": "demo"}),
        (["demo", "random:llava-tiny"], {"models": ["demo", "random:llava-tiny"]}),
        (["--dataset", "demo"], {"dataset": "demo"}),
        (["--max-samples", "2"], {"max_samples": 2}),
        (["--device", "cpu"], {"device": "cpu"}),
        (["--dtype", "float32"], {"dtype": "float32"}),
        (["--engine", "eager"], {"engine": "eager"}),
        (["--protocol", "all"], {"protocol": "all"}),
        (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
        (["--output-length", "5"], {"output_length": 5}),
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--seed", "7"], {"seed": 7}),
        (["--num-warmups", "3"], {"num_warmups": 3}),
        (["--balance-seconds", "1"], {"balance_seconds": 1.0}),
        (["--energy-seconds", "1"], {"energy_seconds": 1.0}),
        (["--profile"], {"profile": True}),
        (["--strict"], {"strict": True}),
        (["--reuse"], {"reuse": True}),
        (["--speculate", "history"], {"speculate": "history"}),
        (["--speculate", "ngram", "--draft-tokens", "7"], {"speculate": "ngram", "draft_tokens": 7}),
        (["--speculate", "auto", "--history", "answers"], {"speculate": "auto", "history": "answers"}),
        (["--output", "elsewhere"], {"output": "elsewhere"}),
    ],
    "run": [
        (["demo"], {"model": "demo"}),
        (["--dataset", "demo"], {"dataset": "demo"}),
        (["--max-samples", "2"], {"max_samples": 2}),
        (["--device", "cpu"], {"device": "cpu"}),
        (["--dtype", "float32"], {"dtype": "float32"}),
        (["--engine", "eager"], {"engine": "eager"}),
        (["--devices", "cpu,cpu"], {"devices": "cpu,cpu"}),
        (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
        (["--output-length", "5"], {"output_length": 5}),
        (["--temperature", "0.5"], {"temperature": 0.5}),
        (["--seed", "7"], {"seed": 7}),
        (["--questions", "questions.txt"], {"questions": ["What moves?", "Is it raining?"]}),
        (["--workers", "2"], {"workers": 2}),
        (["--capacity", "3"], {"capacity": 3}),
        (["--encode-batch", "4"], {"encode_batch": 4}),
        (["--scene-seconds", "9"], {"scene_seconds": 9.0}),
        (["--output", "elsewhere"], {"output": "elsewhere"}),
        (["demo", "--ray"], {"ray": "local"}),
        (["--ray", "auto", "--ray-pools", "encode=2"], {"ray": "auto", "ray_pools": "encode=2"}),
    ],
    "verify": [
        (["demo"], {"model": "demo"}),
        (["--max-new-tokens", "5"], {"max_new_tokens": 5}),
        (["--device", "cpu"], {"device": "cpu"}),
        (["--dtype", "float32"], {"dtype": "float32"}),
        (["--engine", "eager"], {"engine": "eager"}),
    ],
}
REFUSED = {
    "bench": [
        (["nowhere/at/all"], {"models": "nowhere/at/all"}),
        (["demo", "demo"], {"models": ["demo", "demo"]}),
        (["--dataset", "nowhere"], {"dataset": "nowhere"}),
        (["--max-samples", "0"], {"max_samples": 0}),
        (["--device", "psychic"], {"device": "psychic"}),
        (["--dtype", "int3"], {"dtype": "int3"}),
        (["--engine", "psychic"], {"engine": "psychic"}),
        (["--speculate", "psychic"], {"speculate": "psychic"}),
        (["--speculate", "history", "--draft-tokens", "16"], {"speculate": "history", "draft_tokens": 16}),
        (["--draft-tokens", "3"], {"draft_tokens": 3}),
        (["--history", "answers"], {"history": "answers"}),
        (["--protocol", "psychic"], {"protocol": "psychic"}),
        (["--max-new-tokens", "0"], {"max_new_tokens": 0}),
        (["--output-length", "0"], {"output_length": 0}),
        (["--temperature", "-1"], {"temperature": -1.0}),
        (["--temperature", "nan"], {"temperature": float("nan")}),
        (["--num-warmups", "-1"], {"num_warmups": -1}),
        (["--balance-seconds", "-1"], {"balance_seconds": -1.0}),
        (["--energy-seconds", "-1"], {"energy_seconds": -1.0}),
        (["--output", "taken"], {"output": "taken"}),
        (["--resume"], {"resume": True}),
        (["--output", "taken", "--resume"], {"output": "taken", "resume": True}),
    ],
    "run": [
        (["nowhere/at/all"], {"model": "nowhere/at/all"}),
        (["--dataset", "nowhere"], {"dataset": "nowhere"}),
        (["--max-samples", "0"], {"max_samples": 0}),
        (["--device", "psychic"], {"device": "psychic"}),
        (["--dtype", "int3"], {"dtype": "int3"}),
        (["--engine", "psychic"], {"engine": "psychic"}),
        (["--devices", "psychic"], {"devices": "psychic"}),
        (["--device", "cpu", "--devices", "cpu"], {"device": "cpu", "devices": "cpu"}),
        (["--max-new-tokens", "0"], {"max_new_tokens": 0}),
        (["--output-length", "0"], {"output_length": 0}),
        (["--temperature", "-1"], {"temperature": -1.0}),
        (["--workers", "-1"], {"workers": -1}),
        (["--capacity", "0"], {"capacity": 0}),
        (["--encode-batch", "0"], {"encode_batch": 0}),
        (["--scene-seconds", "0"], {"scene_seconds": 0.0}),
        (["--output", "taken"], {"output": "taken"}),
        (["--resume"], {"resume": True}),
        (["--ray", "nobody"], {"ray": "nobody"}),
        (["--ray-pools", "encode=2"], {"ray_pools": "encode=2"}),
        (["--ray", "auto", "--ray-pools", "encode=x"], {"ray": "auto", "ray_pools": "encode=x"}),
        (["--ray", "auto", "--workers", "1"], {"ray": "auto", "workers": 1}),
        (["--ray", "auto", "--devices", "cpu"], {"ray": "auto", "devices": "cpu"}),
    ],
    "verify": [
        (["nowhere/at/all"], {"model": "nowhere/at/all"}),
        (["demo", "--max-new-tokens", "0"], {"model": "demo", "max_new_tokens": 0}),
        (["demo", "--device", "psychic"], {"model": "demo", "device": "psychic"}),
        (["demo", "--dtype", "int3"], {"model": "demo", "dtype": "int3"}),
        (["demo", "--engine", "psychic"], {"model": "demo", "engine": "psychic"}),
        (["demo", "--golden", "nowhere"], {"model": "demo", "golden": "nowhere"}),
        (["demo", "--events", "nowhere.npy"], {"model": "demo", "sample": Sample.from_events("nowhere.npy")}),
    ],
}
ONLY_ONE_WAY = {
    "run": {"--store", "--store-gib"},  # Python is given a store, the command line a folder and its size
    "verify": {"--dataset", "--output"},  # Python is given a sample, and returns the rows
}
FOLDERS = {"output", "folder"}
"""Without a folder the command line makes a folder named after the time."""


def cases(table):
    return [
        pytest.param(verb, *each, id=f"{verb} {' '.join(each[0])}") for verb, rows in table.items() for each in rows
    ]


class StoppedError(Exception):
    pass


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Collect jobs instead of running them, in a folder with one occupied run folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    (tmp_path / "questions.txt").write_text("What moves?\n\nIs it raining?\n")
    made = []

    def collect(job, *_, **__):
        made.append(job)
        raise StoppedError

    for module, name in ((benchmarking, "run_bench"), (answering, "run_answers"), (verifying, "run_verify")):
        monkeypatch.setattr(module, name, collect)
        monkeypatch.setattr(unfuse.api, name, collect)
    return made


def fields_of(job):
    """Return the fields of a job, with the questions of its work."""
    values = {field.name: getattr(job, field.name) for field in fields(job) if field.name not in FOLDERS}
    if "work" in values:
        values["work"] = [(sample, question.text) for sample, question in values["work"].rows]
    return values


@pytest.mark.parametrize(("verb", "arguments", "keywords"), cases(SAME))
def test_an_option_gives_the_same_job(jobs, verb, arguments, keywords):
    keywords = {"model": "demo", **keywords} if verb == "verify" else keywords
    with pytest.raises(StoppedError):
        getattr(unfuse, verb)(**keywords)
    with pytest.raises(StoppedError):
        run([verb, *arguments])
    ours, theirs = jobs
    assert fields_of(ours) == fields_of(theirs)
    if "output" in keywords:
        assert {getattr(job, name) for job in jobs for name in FOLDERS if hasattr(job, name)} == {Path("elsewhere")}


@pytest.mark.parametrize(("verb", "arguments", "keywords"), cases(REFUSED))
def test_an_option_is_refused_with_the_same_message(jobs, capsys, verb, arguments, keywords):
    with pytest.raises(UnfuseError) as caught:
        getattr(unfuse, verb)(**keywords)
    assert run([verb, *arguments]) == caught.value.exit_code == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {caught.value}"
    fault = str(caught.value).partition(", expected ")[0]
    assert "--" not in fault, "Python spells options without dashes; only the way out is a command line"
    assert not jobs


@pytest.mark.parametrize("verb", SAME)
def test_no_option_is_left_out(verb):
    command = cli.commands[verb]
    options = {each.opts[0] for each in command.params if isinstance(each, click.Option)} - ONLY_ONE_WAY.get(
        verb, set()
    )
    tried = {word for table in (SAME, REFUSED) for arguments, _ in table[verb] for word in arguments}
    assert options <= tried
