"""Further members of the kinds of trouble that other people's folders bring."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from make_images import metadata, save

from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.labels import near_twins
from sfumato.data.scan import Scan, scan_folder
from sfumato.data.survey import survey
from sfumato.errors import UserError


def scan(root: Path) -> Scan:
    return scan_folder(FolderConfig(path=root, size=8))


@pytest.mark.parametrize(
    "data",
    [
        "кот".encode("utf-16-le"),
        "赤い花".encode("iso2022-jp"),
        "“red”".encode("cp1252").decode("latin-1").encode(),
        b"\x1b[31mred",
    ],
)
def test_no_control_characters_reach_the_tokenizer(tmp_path: Path, data: bytes) -> None:
    save(tmp_path, ["0.png"])
    (tmp_path / "0.txt").write_bytes(data)
    with pytest.raises(
        UserError, match=r"0\.txt holds, at character \d+ \(line 1\), the control character U\+00.*encoding"
    ):
        scan(tmp_path)


@pytest.mark.parametrize(
    "name", ["0.text", "0.prompt", "archive.zip", "blob", "0.jpg_large", "metadata.csv.gz", "0.cap"]
)
def test_no_file_is_passed_over_in_silence(tmp_path: Path, name: str) -> None:
    save(tmp_path, ["0.png"])
    (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert [file for file, _ in found.left_out] == [name]
    assert any(repr(name) in note for note in found.notes)


def test_the_sentence_on_files_of_many_endings_is_bounded(tmp_path: Path) -> None:
    save(tmp_path, ["0.png"])
    for number in range(30):
        (tmp_path / f"x.e{number}").touch()
    (note,) = scan(tmp_path).notes
    assert note.startswith("30 other files are not read: ")
    assert note.count("its ending is none of") == 6


def test_row_numbers_that_pandas_writes_are_a_column(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / "metadata.csv").write_text(",file_name,text\n0,0.png,a\n1,1.png,b\n")
    found = scan(tmp_path)
    assert found.texts == ("a", "b")
    assert found.unread_columns == ("index",)


def test_numbers_of_tables_with_gaps_are_whole(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png", "2.png"])
    metadata(tmp_path, [{"file_name": f"{i}.png", "label": label} for i, label in enumerate((1.0, 1, 2))])
    assert scan(tmp_path).classes == ("1", "2")


@pytest.mark.parametrize("other", ["cat\u200b", "ca\u00adt", "\ufeffcat"])
def test_twins_by_invisible_marks(other: str) -> None:
    assert near_twins(["cat", other, "dog"]) == [("cat", other)]


def test_twins_by_number() -> None:
    assert near_twins(["7", "007", "7.0", "70", "7.5"]) == [("7", "007", "7.0")]


@pytest.mark.parametrize("name", ["null", "NaN", "None", "N/A"])
def test_a_class_named_as_missing_values_are_is_doubted(tmp_path: Path, name: str) -> None:
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n0.png,{name}\n1.png,cat\n")
    assert any(f"the class {name!r} of 1 image is named as missing" in note for note in scan(tmp_path).notes)


def test_folders_that_are_no_classes_are_listed_with_the_reason(tmp_path: Path) -> None:
    save(tmp_path / "one", ["a/0.png", "b/1.png", "2.png"])
    (note,) = scan(tmp_path / "one").notes
    assert note == "1 of 3 images is in no sub-folder, such as '2.png', so the folders are no classes"
    save(tmp_path / "two", ["set/a/0.png", "set/b/1.png"])
    (note,) = scan(tmp_path / "two").notes
    assert note.startswith("all images are below the folder 'set', so the folders in it are no classes")


def test_folders_inside_classes_are_said_not_to_be_told_apart(tmp_path: Path) -> None:
    save(tmp_path, ["animals/cats/0.png", "animals/dogs/1.png", "plants/2.png", "plants/trees/3.png"])
    found = scan(tmp_path)
    assert found.classes == ("animals", "plants")
    notes = [note for note in found.notes if "outer folders" in note]
    assert notes == ["the classes are the outer folders: those inside, such as 'animals/cats', are not distinguished"]
    save(tmp_path / "flat", ["a/x/0.png", "b/y/1.png"])
    assert not any("outer" in note for note in scan(tmp_path / "flat").notes)


def test_files_that_cannot_be_read_are_counted_once_with_a_reason(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png"])
    for name in ("clip.mp4", "photo.psd"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty.png").touch()
    found = survey(FolderDataset(FolderConfig(path=tmp_path, size=8)), pixels=False).file_warnings()
    assert [warning for warning in found if "clip" in warning or "left out" in warning or "cannot" in warning] == [
        "2 files were left out: 1 .mp4 (it is a video: save its frames as PNG or JPEG), 1 .psd (flatten it and save it "
        "as PNG)",
        "1 image cannot be read, such as 'empty.png': the file is empty",
    ]


@pytest.mark.parametrize("column", ["description", "Description ", "txt"])
def test_more_names_of_captions(tmp_path: Path, column: str) -> None:
    save(tmp_path, ["0.png"])
    metadata(tmp_path, [{"file_name": "0.png", column: "a"}])
    assert scan(tmp_path).texts == ("a",)


def test_an_ending_twice_and_empty_caption_files(tmp_path: Path) -> None:
    save(tmp_path, ["0.png", "1.png"])
    (tmp_path / "0.txt.txt").write_text("a")
    (tmp_path / "1.txt").write_text(" \n")
    found = scan(tmp_path)
    assert found.texts == ("a", "")
    assert "1 caption file is empty, such as '1.txt'" in found.notes


def test_an_empty_metadata_json_is_called_empty(tmp_path: Path) -> None:
    save(tmp_path, ["0.png"])
    (tmp_path / "metadata.json").touch()
    with pytest.raises(UserError, match=r"metadata\.json is empty"):
        scan(tmp_path)


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user of the tests may be one who can open everything, so the system's refusal is made here."""
    save(tmp_path, ["0.png", "closed/1.png"])
    real = os.scandir

    def scandir(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = scan(tmp_path)
    assert found.unreadable == (
        ("closed", "it is a folder that cannot be opened (Permission denied), not a regular file"),
    )
    assert any("the first is closed, a folder that cannot be opened" in note for note in found.notes)
