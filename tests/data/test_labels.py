"""Classes: named, counted, independent of their values; splits are not classes; near-twins are noticed."""

import tracemalloc
from pathlib import Path

import pytest

from data.make_images import metadata, save
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.labels import near_twins
from sfumato.errors import UserError


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


def labelled(root: Path, labels: list[object], column: str = "label") -> FolderDataset:
    names = [f"{i}.png" for i in range(len(labels))]
    save(root, names)
    metadata(root, [{"file_name": name, column: label} for name, label in zip(names, labels, strict=True)])
    return opened(root)


@pytest.mark.parametrize("label", [20230101, 10**9, 10**30])
def test_a_large_number_is_a_name(tmp_path: Path, label: int) -> None:
    tracemalloc.start()
    data = labelled(tmp_path, [label, 7])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.classes == ("7", str(label))
    assert data.labels() == [1, 0]
    assert peak < 30 * 2**20


def test_classes_are_those_that_occur_sorted_as_numbers(tmp_path: Path) -> None:
    data = labelled(tmp_path, [5, 9000, 12, 5])
    assert data.classes == ("5", "12", "9000")
    assert data.labels() == [0, 2, 1, 0]
    assert "3 classes: 5 2, 12 1, 9000 1" in data.notes


def test_numbers_beside_names_are_names(tmp_path: Path) -> None:
    assert labelled(tmp_path, [10, "9", "cat", 9]).classes == ("10", "9", "cat")


def test_labels_are_stripped_and_twins_noticed(tmp_path: Path) -> None:
    data = labelled(tmp_path, ["cat", "cat ", "Cat", "caf\u00e9", "cafe\u0301"])
    assert data.classes == ("Cat", "caf\u00e9", "cat")
    assert data.label_counts() == {"Cat": 1, "caf\u00e9": 2, "cat": 2}
    assert "the classes 'Cat' and 'cat' differ only in spelling: are they the same?" in data.notes


def test_near_twins() -> None:
    assert near_twins(["red fox", "Red_Fox", "red-fox", "fox", "redfox"]) == [("red fox", "Red_Fox", "red-fox")]


@pytest.mark.parametrize("column", ["Label", "class", "Category", "class_name"])
def test_plain_names_of_the_label_column(tmp_path: Path, column: str) -> None:
    data = labelled(tmp_path, ["a", "b"], column)
    assert data.classes == ("a", "b")
    assert data.notes[0] == f"labels come from the metadata's column {column!r}"
    assert data.scan.unread_columns == ()


def test_lists_under_another_name_are_no_labels(tmp_path: Path) -> None:
    data = labelled(tmp_path, [["a"], ["b"]], "class")
    assert data.classes is None
    assert data.scan.unread_columns == ("class",)


def test_negative_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"label -1 .* is negative: .*line 1 of "):
        labelled(tmp_path, [-1, 0])


def test_folders_of_a_split_are_no_classes(tmp_path: Path) -> None:
    save(tmp_path, ["train/cats/0.png", "train/dogs/1.png", "Test/cats/2.png"])
    data = opened(tmp_path)
    assert data.label_counts() == {"cats": 2, "dogs": 1}
    assert any(note.startswith("the folders Test, train split the set") for note in data.notes)
    assert opened(tmp_path, leave_out=["Test"]).label_counts() == {"cats": 1, "dogs": 1}


def test_splits_without_classes(tmp_path: Path) -> None:
    save(tmp_path, ["train/0.png", "val/1.png"])
    data = opened(tmp_path)
    assert data.classes is None
    assert any("train, val split the set" in note for note in data.notes)


def test_a_split_beside_classes_is_named(tmp_path: Path) -> None:
    save(tmp_path, ["test/0.png", "cats/1.png", "dogs/2.png"])
    assert "the folder test is used as a class, like the others beside it" in opened(tmp_path).notes
