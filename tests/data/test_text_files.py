"""The one reader of text files: what it decodes, what it refuses, and with which message."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.make_images import save
from sfumato.cli.sample_rows import read_prompts
from sfumato.data.conditions.class_names import read_class_names
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.strict_json import parse_json
from sfumato.data.textfile import LARGEST_CAPTION, lines_of, read_text, shown
from sfumato.errors import UserError

TEXT = "un café à l'ombre, 一杯茶\n"
MARKS = {"utf-8": b"\xef\xbb\xbf", "utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"} | {
    "utf-32-le": b"\xff\xfe\0\0",
    "utf-32-be": b"\0\0\xfe\xff",
}


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("marked", [True, False])
def test_unicode_with_and_without_a_mark(tmp_path: Path, encoding: str, marked: bool) -> None:
    data = (MARKS[encoding] if marked else b"") + TEXT.encode(encoding)
    assert read_text(written(tmp_path / "a.txt", data)) == TEXT


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"], exclude_characters="\ufffd"), min_size=1))
def test_utf_16_without_a_mark_is_read_as_written_or_not_at_all(text: str) -> None:
    """Bytes that hold a NUL are never read as something else than what was written."""
    for encoding in ("utf-16-le", "utf-16-be"):
        data = text.encode(encoding)
        if 0 not in data:
            continue  # these may be ASCII just as well: the file does not say
        with tempfile.TemporaryDirectory() as folder:
            path = written(Path(folder) / "a.txt", data)
            with suppress(UserError):
                assert read_text(path) == text


def test_other_encodings_are_refused_by_byte_or_declared(tmp_path: Path) -> None:
    path = written(tmp_path / "0.txt", b"un caf\xe9")
    with pytest.raises(UserError, match=r"0\.txt is not UTF-8 text, byte 6 is 0xe9: .*data\.encoding=cp1252"):
        read_text(path)
    assert read_text(path, "cp1252") == "un café"
    assert read_text(path, "latin-1") == "un café"
    with pytest.raises(UserError, match=r"not ascii text, byte 6 is 0xe9"):
        read_text(path, "ascii")
    assert read_text(written(tmp_path / "1.txt", "un café".encode()), "cp1252") == "un café"  # UTF-8 goes first
    for encoding in ("shift-jis", "gb18030", "euc-jp", "iso2022_jp", "utf-7"):
        assert read_text(written(tmp_path / "2.txt", "茶 a".encode(encoding)), encoding) == "茶 a"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\0b", "byte 1 is NUL"),
        (b"\xef\xbb\xbfa\0b", "character 1 .line 1., a NUL character"),
        ("a\n\ufffd".encode(), "character 2 .line 2., U.FFFD"),
        (b"\xff\xfea", "is not utf-16-le text, byte 2"),
        (b"\xed\xa0\x80", "byte 0 is 0xed"),  # half of a surrogate pair
        (b"\0" * 64, "byte 0 is NUL"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\r", "not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_text(written(tmp_path / "a.txt", data))


def test_nul_does_not_pass_by_a_declared_encoding(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="NUL"):
        read_text(written(tmp_path / "a.txt", b"a\0b\xe9"), "latin-1")


def test_only_regular_files_of_a_bounded_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    for path, message in ((tmp_path / "pipe.txt", "not a regular file"), (Path("/dev/zero"), "not a regular file")):
        with pytest.raises(UserError, match=message):
            read_text(path)
    with pytest.raises(UserError, match="No such file"):
        read_text(tmp_path / "none.txt")
    with pytest.raises(UserError, match=r"larger than 3 bytes"):
        read_text(written(tmp_path / "a.txt", b"abcd"), largest=3)


@pytest.mark.parametrize("name", ["hex", "rot13", "idna", "unicode_escape", "undefined", "no-such", "", "utf-8\0"])
def test_no_encoding_of_that_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValidationError, match=r"encoding .* is unknown"):
        FolderConfig.model_validate({"path": tmp_path, "encoding": name})


def test_lines_and_what_messages_show() -> None:
    assert lines_of("a\r\nb\rc\u2028d\n") == ["a", "b", "c\u2028d", ""]
    assert shown("a\x1b[2J") == r"'a\x1b[2J'"
    assert len(shown("x" * 999)) < 70


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' twice"),
        ('{"a": NaN}', "holds NaN"),
        ('{"a": 1e999}', "not a finite number"),
        ('{"a": ' + "1" * 5000 + "}", "thousands of digits"),
        ("[" * 100_000, "nested deeper|is not JSON"),
        ("[" * 40 + "]" * 40, "nested deeper than 32"),
        ('{"a": "x\\u0000"}', "NUL"),
        ('{"a": "\\ud800"}', "half of a surrogate pair"),
        ("{oops", "is not JSON"),
    ],
)
def test_json_is_strict(text: str, message: str) -> None:
    with pytest.raises(UserError, match=f"^line 7 .*({message})"):
        parse_json(text, "line 7")


def test_every_kind_of_text_file_goes_through_it(tmp_path: Path) -> None:
    """The same bytes in a caption, a table, a list of names and a prompts file; each names file and byte."""
    save(tmp_path / "d", ["0.png"])
    for name, head in (
        ("0.txt", b""),
        ("metadata.csv", b"file_name,text\n0.png,"),
        ("metadata.jsonl", b'{"file_name": "0.png", "text": "'),
        ("metadata.json", b'[{"file_name": "0.png", "text": "'),
    ):
        path = written(tmp_path / "d" / name, head + b"caf\xe9" + (b'"}]' if name.startswith("metadata.j") else b""))
        with pytest.raises(UserError, match=rf"{name} is not UTF-8 text, byte {len(head) + 3} is 0xe9"):
            opened(tmp_path / "d")
        path.unlink()
    bad = written(tmp_path / "list.txt", b"caf\xe9\n")
    with pytest.raises(UserError, match=r"list\.txt is not UTF-8 text, byte 3"):
        read_class_names(bad)
    with pytest.raises(UserError, match=r"--prompts '.*list\.txt' is not UTF-8 text, byte 3"):
        read_prompts(bad)
    assert read_prompts(written(bad, "café\n\nthé\n".encode("utf-16"))) == ["café", "thé"]


def test_a_declared_encoding_reaches_captions_and_tables(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png"])
    written(tmp_path / "0.txt", b"un caf\xe9")
    assert opened(tmp_path, encoding="cp1252").captions() == ["un café", ""]
    written(tmp_path / "metadata.csv", b"file_name;text\n1.png;th\xe9\n0.png;caf\xe9\n")
    assert opened(tmp_path, encoding="cp1252").captions() == ["café", "thé"]


def test_a_caption_file_is_no_book(tmp_path: Path) -> None:
    save(tmp_path, ["0.png"])
    written(tmp_path / "0.txt", b"a" * (LARGEST_CAPTION + 1))
    with pytest.raises(UserError, match=r"0\.txt is larger than 1,048,576 bytes"):
        opened(tmp_path)
