"""YAML and JSON of anyone: measured before anything is built, strict about keys, one sentence for the rest."""

import os
from pathlib import Path

import pytest

from sfumato.config import apply_overrides, read_source
from sfumato.documents import MAX_DEPTH, parse_json, parse_yaml, read_text
from sfumato.errors import UserError
from sfumato.foreign import printable, reading, short

TENFOLD = "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10) if i else 'x'}]\n" for i in range(11))
CHAIN = "".join(f"a{i}: &a{i} [{f'*a{i - 1}' if i else 'x'}]\n" for i in range(500))
YAML = {
    "twice": ("model:\n  a: 1\ndata: 2\nmodel:\n  b: 2\n", "the key 'model' twice, in lines 1 and 4"),
    "twice below": ("a:\n  b: 1\n  b: 2\n", "the key 'b' twice, in lines 2 and 3"),
    "twice in brackets": ("a: {b: 1, c: 2, b: 3}\n", "the key 'b' twice, in lines 1 and 1"),
    "aliases tenfold": (TENFOLD, "more than 200000 values, with all that its aliases repeat"),
    "chain of aliases": (CHAIN, "nested deeper than 64 levels"),
    "recursive": ("a: &a\n  b: *a\n", "refers to itself in line 2"),
    "recursive list": ("a: &a [1, *a]\n", "refers to itself in line 1"),
    "deep brackets": ("[" * 50_000, "nested deeper than 64 levels"),
    "deep dashes": ("- " * 5_000, "nested deeper than 64 levels"),
    "endless number": (f"a: {'9' * 5000}\n", "a number of 5000 digits in line 1"),
    "endless hex": (f"a: 0x{'f' * 5000}\n", "digits in line 1"),
    "colliding keys": ("".join(f"{k * (2**61 - 1)}: 1\n" for k in range(1, 9)), "the number .* as a key in line 1"),
    "code": ("a: !!python/object/apply:os.system [id]\n", "could not determine a constructor"),
    "list as key": ("? [a, b]\n: 1\n", "unhashable key"),
    "no such day": ("a: 2023-99-99\n", "month must be in"),
    "empty number": ("a: !!int ''\n", "not valid YAML"),
    "escape": ("a: \x1b[31m\n", "characters are not allowed"),
    "undefined alias": ("a: *b\n", "undefined alias"),
    "two documents": ("a: 1\n---\nb: 2\n", "single document"),
}
JSON = {
    "twice": ('{"a": 1, "a": 2}', "the key 'a' twice"),
    "deep": ("[" * 100_000, "nested deeper"),
    "deep but whole": ("[" * 100 + "]" * 100, "nested deeper"),
    "endless number": ('{"a": ' + "1" * 5000 + "}", "a number of 5000 digits"),
    "too large": ('{"a": 1e400}', "the number '1e400', which is too large"),
    "NaN": ('{"a": NaN}', "holds NaN"),
    "half": ('{"a": ', "not readable JSON"),
}


@pytest.mark.parametrize("name", YAML)
def test_a_hostile_yaml_is_one_sentence(name: str) -> None:
    text, sentence = YAML[name]
    with pytest.raises(UserError, match=f"^config 'x' .*{sentence}") as caught:
        parse_yaml(text, "config 'x'")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("name", JSON)
def test_a_hostile_json_is_one_sentence(name: str) -> None:
    text, sentence = JSON[name]
    with pytest.raises(UserError, match=f"^x.json .*{sentence}"):
        parse_json(text, "x.json")


def test_plain_texts_are_read_as_ever() -> None:
    merged = "a: &a\n  x: 1\n  y: [1, 2.5, yes]\nb:\n  <<: *a\n  x: 5\n"
    assert parse_yaml(merged, "x") == {"a": {"x": 1, "y": [1, 2.5, True]}, "b": {"x": 5, "y": [1, 2.5, True]}}
    assert parse_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH, "x") is not None
    assert parse_json('{"a": [1, 2.5, "x", null]}', "x") == {"a": [1, 2.5, "x", None]}


def test_an_empty_configuration_is_an_error(tmp_path: Path) -> None:
    for text in ("", "# only a comment\n", "---\n"):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError, match=r"x.yaml' is empty"):
            read_source(str(tmp_path / "x.yaml"))


def test_overrides_are_bounded_too() -> None:
    with pytest.raises(UserError, match="the key 'b' twice"):
        apply_overrides({}, ["a={b: 1, b: 2}"])


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "nothing.yaml").symlink_to("absent")
    for name, sentence in (
        ("pipe.yaml", "not a regular file"),
        ("zero.yaml", "not a regular file"),
        ("loop.yaml", "cannot be opened"),
        ("nothing.yaml", "link to nothing"),
        (".", "is a folder"),
        ("n" * 300, "cannot be opened: File name too long|does not exist"),
    ):
        with pytest.raises(UserError, match=sentence):
            read_source(str(tmp_path / name))


def test_other_encodings_and_sizes_are_named(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"not UTF-8 text .byte 3 is 0xe9"):
        read_text(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa: 1")
    assert read_text(tmp_path / "x") == "a: 1"
    with pytest.raises(UserError, match="more than 0 MiB"):
        read_text(tmp_path / "x", limit=4)


def test_what_is_shown_is_bounded_and_harmless() -> None:
    shared: list[object] = []
    for _ in range(200):
        shared = [shared, shared]
    assert len(short(shared)) <= 200
    assert len(short(10**5000)) <= 200
    assert printable("a\x1b[31mb\x9b\u202ec\n\x00é語") == "a\\x1b[31mb\\x9b\\u202ec\n\\x00é語"


def test_the_guard_names_the_file_and_lets_errors_of_the_machine_pass() -> None:
    for error in (KeyError("a"), RecursionError(), OverflowError("x"), RuntimeError("y"), OSError(36, "too long")):
        with pytest.raises(UserError, match=r"^'some\.file' cannot be read"), reading("some.file"):
            raise error
    with pytest.raises(OSError, match="full"), reading("some.file"):
        raise OSError(28, "full")
