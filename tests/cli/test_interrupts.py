"""One Ctrl-C ends a command, whatever the command does with it."""

from __future__ import annotations

import shlex
import signal
import time

import click
import pytest

from tests.started import PATIENCE_S, Started
from unfuse.cli import cli, interrupts
from unfuse.cli.errors import exit_code_of
from unfuse.cli.interrupts import command_line, interruptible, on_interrupt, say_interrupted


def deaf(ready):
    """Swallow every interrupt, as a callback of C code does."""
    on_interrupt(lambda: ["Stopped.", "Go on with: unfuse again"])
    with interruptible():
        ready.touch()
        while True:
            try:
                time.sleep(0.01)
            except KeyboardInterrupt:
                continue


def slow_to_stop(ready):
    on_interrupt(lambda: ["Stopped."])
    interrupts.GRACE_S = PATIENCE_S
    with interruptible():
        ready.touch()
        try:
            time.sleep(PATIENCE_S)
        finally:
            ready.with_name("first").touch()
            time.sleep(PATIENCE_S)


def orderly(ready, code):
    with interruptible():
        ready.touch()
        try:
            time.sleep(PATIENCE_S)
        except KeyboardInterrupt:
            click.echo("in order")
            raise SystemExit(code) from None


def interrupted(function, tmp_path, *more):
    process = Started(function, tmp_path / "ready", *more, folder=tmp_path)
    assert process.wait_until((tmp_path / "ready").exists), process.errors
    process.send(signal.SIGINT)
    return process


def test_a_command_that_swallows_it_is_ended(tmp_path):
    process = interrupted(deaf, tmp_path)
    assert process.wait() == 130
    assert process.out == "Stopped.\nGo on with: unfuse again\n"


def test_a_second_one_ends_it_at_once(tmp_path):
    process = interrupted(slow_to_stop, tmp_path)
    process.wait_until((tmp_path / "first").exists)
    process.send(signal.SIGINT)
    assert process.wait() == 130
    assert process.out == "Stopped.\n"


@pytest.mark.parametrize("code", [130, 0])
def test_an_orderly_stop_keeps_its_exit_code(tmp_path, code):
    process = interrupted(orderly, tmp_path, code)
    assert process.wait() == code
    assert process.out == "in order\n"


def test_without_a_signal_nothing_happens(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with interruptible():
        pass
    with pytest.raises(SystemExit), interruptible():
        raise SystemExit(3)
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.set_wakeup_fd(-1) == -1


def test_what_is_said(capsys):
    on_interrupt(None)
    say_interrupted()
    assert capsys.readouterr() == ("", "interrupted\n")
    on_interrupt(lambda: ["Go on"])
    say_interrupted()
    assert capsys.readouterr() == ("Go on\n", "")

    @click.command()
    def stopped():
        raise KeyboardInterrupt

    assert exit_code_of(stopped, [], "stopped") == 130
    assert capsys.readouterr().err.endswith("\ninterrupted\n"), "the lines of an earlier command are gone"


@pytest.mark.parametrize(
    "line",
    [
        "bench demo --device cpu",
        "bench demo 'a b' --protocol fused --reuse --output-length 46 --temperature 0.5 --output runs/x",
        "bench --resume --output runs/x --profile --strict",
        "run demo --dataset d --output o",
        "run demo --dataset d --questions q.txt --store s --max-new-tokens 7 --output o --resume",
        "dataset build in out --window 500ms --frames 3",
        "dataset demo out --count 5",
    ],
)
def test_the_line_that_goes_on_has_the_given_options_and_no_others(line):
    group, words = cli, shlex.split(line)
    context = click.Context(cli, info_name="unfuse")
    while isinstance(group, click.Group):
        name, group, words = group.resolve_command(context, words)
        context = group.make_context(name, words if not isinstance(group, click.Group) else [*words], parent=context)
        words = [*context._protected_args, *context.args] if isinstance(group, click.Group) else words
    made = command_line(context)
    assert made.startswith("unfuse ")
    assert sorted(shlex.split(made)[1:]) == sorted(shlex.split(line))


def test_flags_are_off_by_default():
    """``command_line`` writes a flag that is on, and has no word for one that is off."""
    found = [*cli.commands.items()]
    while found:
        name, command = found.pop()
        if isinstance(command, click.Group):
            found += command.commands.items()
            continue
        context = click.Context(command, info_name=name)
        for parameter in command.params:
            if getattr(parameter, "is_flag", False):
                assert not parameter.get_default(context), (name, parameter.name)
                assert not parameter.secondary_opts, (name, parameter.name)


def test_a_command_line_comes_back():
    seen = []

    @click.command(name="do")
    @click.argument("first", required=False)
    @click.argument("others", nargs=-1)
    @click.option("--count", type=int, default=3)
    @click.option("--name", default=None)
    @click.option("--fast", is_flag=True)
    @click.pass_context
    def do(context, first, others, count, name, fast):
        seen.append((first, others, count, name, fast))
        return command_line(context, fast=True)

    line = do.main(["a b", "c", "d'e", "--count", "3", "--name", "x y"], prog_name="unfuse do", standalone_mode=False)
    assert line == "unfuse do 'a b' c 'd'\"'\"'e' --name 'x y' --fast"
    do.main(shlex.split(line)[2:], prog_name="unfuse do", standalone_mode=False)
    assert seen[1] == ("a b", ("c", "d'e"), 3, "x y", True)
