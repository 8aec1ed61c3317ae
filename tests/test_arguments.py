"""Paths and options that no command takes, tried on every command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main

from command_line import Command, Runs
from sfumato.cli import app
from sfumato.cli import arguments as checked
from sfumato.config import parse
from sfumato.data.folder_config import FolderConfig
from sfumato.errors import UserError

SOURCE = Path(__file__).parents[1] / "src"


def _commands(group, words=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, (*words, name))
        else:
            yield (*words, name), command


COMMANDS = dict(_commands(typer.main.get_command(app)))
PATHS = [(words, name) for words, command in COMMANDS.items() for name in sorted(command.paths())]


def _given(words: tuple[str, ...], value: str, name: str) -> list[str]:
    """A command line in which one parameter has a value, and all else that must be given is a word."""
    line: list[str] = []
    for param in COMMANDS[words].params:
        if param.required or param.name == name:
            text = value if param.name == name else "1"
            line.append(f"{max(param.opts, key=len)}={text}" if param.param_type_name == "option" else text)
    return [*words, *line]


def test_all_commands_are_checked() -> None:
    assert {words for words, command in COMMANDS.items() if not isinstance(command, checked.Command)} == set()
    with_paths = {words for words, _ in PATHS}
    assert set(COMMANDS) - with_paths == {("samplers",), ("zoo",), ("data",)}  # data takes addresses of shards too
    assert len(PATHS) > 60


@pytest.mark.parametrize(("words", "name"), PATHS, ids=lambda part: part if isinstance(part, str) else "-".join(part))
def test_no_path_is_empty_or_a_url(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for value, sentence in (
        ("", "is empty: give a path"),
        (" ", "is empty"),
        ("https://a.b/c", "'https://a.b/c' is a URL"),
    ):
        done = command(*_given(words, value, name))
        assert done.code == 2
        assert sentence in done.err, done.err
        assert done.err.startswith("sfumato: ")
        assert len(done.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder_is_known_to_every_command(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    done = command("info", "~/none")
    assert f"'{tmp_path}/none' does not exist" in done.err
    done = command("train", "autoencoder", "zoo:toy/small-autoencoder", "--data=~/none", "--out", tmp_path / "o")
    assert f"{tmp_path}/none" in done.err
    assert command("info", "~nobody-of-that-name/x").err.endswith(
        "home folder of an unknown user: give the full path\n"
    )
    (tmp_path / "d").mkdir()
    assert parse({"path": "~/d"}, FolderConfig, "x").path == tmp_path / "d"


@pytest.mark.parametrize("value", ["", "  ", "s3://bucket/x", "a\0b"])
def test_a_configuration_has_no_such_path_either(value: str) -> None:
    with pytest.raises(UserError, match=r"path (is empty|'s3://bucket/x' is a URL|'a\\x00b' holds a NUL)"):
        parse({"path": value}, FolderConfig, "x")


@pytest.mark.parametrize("words", COMMANDS, ids="-".join)
def test_an_option_of_one_value_is_given_once(command: Command, words: tuple[str, ...]) -> None:
    singles = [
        param
        for param in COMMANDS[words].params
        if param.param_type_name == "option" and not param.multiple and not param.is_flag and param.name != "help"
    ]
    for param in singles:
        name = max(param.opts, key=len)
        done = command(*words, f"{name}=1", name, "2")
        assert done.code == 2
        assert f"sfumato: {name} is given 2 times: give it once" in done.err


def test_an_option_of_several_values_may_be_repeated(command: Command, runs: Runs, tmp_path: Path) -> None:
    done = command("sample", runs.label, "--label", "1", "--label", "2", "--steps", 1, "--out", tmp_path / "o")
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("fit x --minutes abc", "--minutes is 'abc': give a number"),
        ("sample x --steps 1.5 --out o", "--steps is '1.5': give a whole number"),
        ("sample x --sed 1 --out o", "no such option: --sed"),
        ("sample", "missing argument 'MODEL'; see `"),
        ("sample x --out o --seed", "option '--seed' requires an argument; see `"),
        ("train decoder", "no such command 'decoder'"),
        ("smaple", "no such command 'smaple'"),
        ("--verbose info", "no such option: --verbose"),
    ],
)
def test_what_cannot_be_parsed_is_one_sentence(command: Command, line: str, sentence: str) -> None:
    done = command(*line.split())
    assert done.code == 2
    assert done.err.startswith(f"sfumato: {sentence}")
    assert len(done.err.splitlines()) == 1
    assert done.out == ""


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    for arguments in ([b"sample", b"model", b"a \xff", b"--out", b"o"], [b"info", b"caf\xe9"], [b"\xff"]):
        done = subprocess.run(
            [sys.executable, "-m", "sfumato", *arguments], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert done.returncode == 2
        assert "is not UTF-8 text" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--window", "--count", "--seed", "--size", "--guidance", "--steps", "--times"])
def test_a_number_of_thousands_of_digits_is_refused(command: Command, option: str) -> None:
    done = command("sample", "model", "a text", f"{option}={'9' * 5000}", "--out", "out")
    assert done.code == 2
    assert "holds a number of 5000 digits" in done.err
    assert len(done.err) < 300


def test_a_nul_is_refused(command: Command) -> None:
    assert "holds a NUL character" in command("info", "a\0b").err
    assert "is not UTF-8 text" in command("info", "a\ud800b").err
