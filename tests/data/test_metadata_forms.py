"""Metadata as people have it: delimiters, quotes, other names for columns and files, names that differ."""

import json
import sys
import unicodedata
from pathlib import Path

import pytest

from data.make_images import metadata, save
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.metadata_files import read_rows
from sfumato.errors import UserError


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


def csv(root: Path, text: str, name: str = "metadata.csv") -> FolderDataset:
    """Two images and this table."""
    save(root, ["0.png", "1.png"])
    (root / name).write_bytes(text.encode())
    return opened(root)


@pytest.mark.parametrize(
    "text",
    [
        'file_name,text\n0.png,"a red, round thing"\n1.png,b\n',
        "file_name;text\n0.png;a red, round thing\n1.png;b\n",
        "file_name\ttext\r\n0.png\ta red, round thing\r\n1.png\tb\r\n",
        "file_name|text\n0.png|a red, round thing\n1.png|b\n",
        'file_name, text\n0.png, "a red, round thing"\n1.png, b\n',
        'sep=;\nfile_name;text\n0.png;"a red, round thing"\n1.png;b\n',
        '\n"file_name","text"\r"0.png","a red, round thing"\r"1.png","b"\r',
        "text;file_name;\na red, round thing;0.png;\nb;1.png;\n;;\n",
        "File Name;Caption\n0.png;a red, round thing\n1.png;b\n",
        "image_path,prompt\n0.png,'a red'\n1.png,b\n".replace("'a red'", '"a red, round thing"'),
    ],
)
def test_csv_in_any_usual_dress(tmp_path: Path, text: str) -> None:
    assert csv(tmp_path, text).captions() == ["a red, round thing", "b"]


def test_a_heading_with_the_other_delimiter_in_it_misleads_nothing(tmp_path: Path) -> None:
    data = csv(tmp_path, "file_name,text;or so,text\n0.png,x,a;b\n1.png,x,c;d;e\n")
    assert data.captions() == ["a;b", "c;d;e"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file_name,text\n0.png,a red, round thing\n", r"line 2 of .* has 3 fields under 2 headings: .*quote it"),
        ("file_name,text\n1.png,x\n0.png,a red, round, thing\n", r"line 3 of .* has 4 fields under 2 headings"),
        ("file_name,text,\n0.png,a red, round thing\n", r"line 2 of .* has 3 fields under 2 headings"),
        ("file_name;text\n0.png;a; b\n", r"line 2 of .* has 3 fields under 2 headings"),
        ('file_name,text\n0.png,"a\n1.png,b\n', r"line 2 of .*quotation mark is left open"),
        ('file_name,text\n0.png,"a "red" one"\n', r"line 2 of .* cannot be read as CSV"),
        ("file_name,text\n0.png," + "x" * 140_000 + "\n", r"line 2 of .*longer than 131,072 characters"),
        ("file_name,text,text\n0.png,a,b\n", r"line 1 of .* has the heading 'text' twice"),
        ("name,text\n0.png,a\n", r"line 1 of .* has no file_name among its headings 'name', 'text'"),
        ("file_name,text\n,a\n", r"line 2 of .* has no file_name"),
        ("", r"metadata\.csv is empty"),
        ("\n \n", r"metadata\.csv is empty"),
        ("file_name,text\n", r"metadata\.csv is empty"),
    ],
)
def test_csv_that_cannot_be_understood_names_the_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        csv(tmp_path, text)


def test_whole_numbers_alone_become_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_text("file_name,a,b,c,d,e\n7,007,12,1e3," + "9" * 5000 + ",1.0\n")
    assert read_rows(path)[0].file == "7"
    assert read_rows(path)[0].values == {"a": "007", "b": 12, "c": "1e3", "d": "9" * 5000, "e": "1.0"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Metadata.jsonl", '{"file_name": "0.png", "text": "a"}\n\n{"file_name": "1.png", "text": "b"}'),
        ("metadata.ndjson", '{"file_name": "0.png", "text": "a\u2028"}\r{"file_name": "1.png", "text": "b"}\r'),
        ("METADATA.CSV", "file_name,text\n0.png,a\n1.png,b\n"),
        ("metadata.tsv", "file_name\ttext\n0.png\ta\n1.png\tb\n"),
        ("metadata.json", '[{"file_name": "0.png", "text": "a"}, {"file_name": "1.png", "text": "b"}]'),
        ("metadata.json", '{"file_name": ["0.png", "1.png"], "text": ["a", "b"]}'),
        ("metadata.json", '{"file_name": {"0": "0.png", "1": "1.png"}, "text": {"0": "a", "1": "b"}}'),
        ("metadata.json", '{"0.png": "a", "1.png": "b"}'),
        ("Metadata.JSON", '{"0": {"caption": "a"}, "1": {"caption": "b"}}'),
        ("metadata.jsonl", '{"image": "0.png", "Caption": "a"}\n{"image": "1.png", "Caption": "b"}'),
    ],
)
def test_forms_and_names_of_metadata(tmp_path: Path, name: str, content: str) -> None:
    assert csv(tmp_path, content, name).captions() == ["a", "b"]


@pytest.mark.parametrize("content", ['{"title": "my set", "version": 3}', '["a", "b"]', "7", '{"a.jpg": "x"}'])
def test_a_metadata_json_of_something_else_is_left_out_by_name(tmp_path: Path, content: str) -> None:
    data = csv(tmp_path, content, "metadata.json")
    assert data.scan.files == ("0.png", "1.png")
    assert [name for name, _ in data.scan.left_out] == ["metadata.json"]
    assert any("metadata.json" in note for note in data.notes)


def test_parquet_is_named_with_its_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"metadata\.parquet needs .* pip install pyarrow, .*data\.leave_out"):
        csv(tmp_path, "PAR1", "metadata.parquet")
    assert opened(tmp_path, leave_out=["metadata.parquet"]).captions() is None


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "0.png", "text": "a", "text": "b"}', r"line 1 of .* has the key 'text' twice"),
        ('{"file_name": "0.png", "label": NaN}', r"line 1 of .* holds NaN"),
        ('{"file_name": "0.png", "text": {"en": "a"}}', r"line 1 of .* has the text .* which is not text"),
        ('{"file_name": "0.png", "text": ["a", ["b"]]}', r"line 1 of .* has the text .* which is not text"),
        ('{"file_name": "0.png", "label": ["a"]}', r"line 1 of .* has the label .* which is not a single name"),
        ('{"file_name": 7}', r"line 1 of .* has no file_name"),
        ('{"file_name": "0.png", "x": ' + "[" * 50 + "]" * 50 + "}", r"line 1 of .* is nested deeper"),
        ("[1]", r"line 1 of .* is not a JSON object"),
    ],
)
def test_json_rows_that_cannot_be_understood_name_the_line(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        csv(tmp_path, line, "metadata.jsonl")


def named(root: Path, files: list[str], names: list[str]) -> dict[str, str]:
    """The captions of files that the metadata calls by these names; the caption is the name."""
    save(root, files)
    metadata(root, [{"file_name": name, "text": name} for name in names])
    data = opened(root)
    return dict(zip(data.scan.files, data.captions() or [], strict=True))


@pytest.mark.parametrize(
    "name", ["/abs/path/0.png", "train/0.png", "0", "0.PNG", ".\\0.png", "./0.png", "C:\\set\\0.png", "x/../0.png"]
)
def test_rows_find_the_file_that_alone_can_be_meant(tmp_path: Path, name: str) -> None:
    assert named(tmp_path, ["0.png"], [name]) == {"0.png": name}


def test_absolute_names_into_the_folder_and_names_without_their_folder(tmp_path: Path) -> None:
    inside = str(tmp_path / "a/0.png")
    assert named(tmp_path, ["a/0.png", "b/0.png", "b/1.png"], [inside, "1.png"]) == {
        "a/0.png": inside,
        "b/1.png": "1.png",
    }


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_unicode_forms_of_one_name(tmp_path: Path, here: str, there: str) -> None:
    file, name = (unicodedata.normalize(form, "café.png") for form in (here, there))  # type: ignore[arg-type]
    assert named(tmp_path, [file], [name]) == {file: name}


@pytest.mark.parametrize(
    ("files", "names"),
    [
        (["a/0.png"], ["b/0.png"]),  # another folder's
        (["a/0.png", "b/0.png"], ["0.png"]),  # either
        (["0.png", "0.jpg"], ["0"]),
        (["0.png"], ["train/0.png", "test/0.png"]),  # two claim it
        (["0.png"], ["../../0.jpg"]),
        (["00.png"], ["0.png"]),
    ],
)
def test_nothing_is_guessed(tmp_path: Path, files: list[str], names: list[str]) -> None:
    with pytest.raises(UserError, match=r"names none of its \d images: it names .*the folder contains"):
        named(tmp_path, files, names)


def test_an_exact_name_goes_before_a_likeness(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png"])
    metadata(tmp_path, [{"file_name": n, "text": n} for n in ("old/0.png", "0.png", "1.PNG")])
    data = opened(tmp_path)
    assert data.captions() == ["0.png", "1.PNG"]
    assert data.scan.missing == ("old/0.png",)
    assert data.notes[0] == (
        "1 name in the metadata is not exactly that of a file, but matches one: '1.PNG' is '1.png'"
    )


def test_several_metadata_files_that_name_one_image(tmp_path: Path) -> None:
    save(tmp_path, ["0.png"])
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a\n")
    metadata(tmp_path, [{"file_name": "0.png", "text": "b"}])
    data = opened(tmp_path)
    assert data.captions() == ["b"]
    assert data.notes[0] == "1 image is named by several metadata files, such as '0.png': metadata.jsonl is used"


def test_columns_that_nothing_reads_are_known(tmp_path: Path) -> None:
    save(tmp_path, ["0.png"])
    row = {"file_name": "0.png", "text": "a", "title": "b", "season": 3, "artist": "c", "label": "x"}
    (tmp_path / "metadata.jsonl").write_text(json.dumps(row))
    assert opened(tmp_path, columns=["season"], where={"artist": "c"}).scan.unread_columns == ("title",)
