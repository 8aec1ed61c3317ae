"""Every convention a folder of images may follow, and every way it can be wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from data.make_images import metadata, noise, save, truncated
from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.errors import UserError


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


def test_just_images_recursive_sorted_hidden_ignored(tmp_path: Path) -> None:
    save(tmp_path, ["b.png", "a/z.jpg", "a/deep/y.webp", "B.bmp", "c.gif", "d.TIFF"])
    save(tmp_path, ["a/deep/.hidden.png", ".git/x.png"])
    (tmp_path / "notes.md").write_text("no image")
    data = opened(tmp_path)
    assert data.scan.files == ("B.bmp", "a/deep/y.webp", "a/z.jpg", "b.png", "c.gif", "d.TIFF")
    assert data.fields == ()
    assert data.classes is None
    assert data.captions() is None
    assert data[0].image.shape == (3, 8, 8)
    assert data[0].image.dtype == torch.uint8
    assert data[0].fields == {}


def test_pixels_of_the_right_size_are_untouched(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    expected = torch.from_numpy(np.array(noise(0))).permute(2, 0, 1)
    assert torch.equal(opened(tmp_path)[0].image, expected)


def test_class_folders_label_by_first_level(tmp_path: Path) -> None:
    save(tmp_path, ["dog/1.png", "cat/2.png", "cat/kittens/3.png", "big_bird/4.png"])
    data = opened(tmp_path)
    assert data.classes == ("big_bird", "cat", "dog")
    assert data.labels() == [0, 1, 1, 2]
    assert data[3].fields == {"label": 2}
    assert data.label_counts() == {"big_bird": 1, "cat": 2, "dog": 1}
    assert opened(tmp_path, text_from="label").captions() == ["big bird", "cat", "cat", "dog"]


@pytest.mark.parametrize("names", [["only/1.png", "only/2.png"], ["cat/1.png", "dog/2.png", "loose.png"]])
def test_one_sub_folder_or_loose_images_are_no_classes(tmp_path: Path, names: list[str]) -> None:
    save(tmp_path, names)
    assert opened(tmp_path).classes is None
    with pytest.raises(UserError, match="text_from 'label' needs labels"):
        opened(tmp_path, text_from="label")


def test_side_car_captions(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png", "c.png"])
    (tmp_path / "a.txt").write_text("  first line \nsecond line\n", encoding="utf-8-sig")
    (tmp_path / "b.txt").write_text("naïve\n", encoding="utf-8")
    data = opened(tmp_path)
    assert data.captions() == ["first line", "naïve", ""]
    assert data.notes[0] == "1 of 3 images has no caption and gets an empty one"
    assert opened(tmp_path, caption_lines="all").captions() == ["first line \nsecond line", "naïve", ""]


def test_metadata_with_text_string_labels_and_columns(tmp_path: Path) -> None:
    save(tmp_path, ["x/a.png", "x/b.png"])
    metadata(
        tmp_path,
        [
            {"file_name": "x/b.png", "text": "bee", "label": "insect", "style": "flat", "tags": ["small"]},
            {"file_name": "./x/a.png", "text": "ant", "label": "animal", "tags": []},
        ],
    )
    data = opened(tmp_path, columns=("style", "tags"))
    assert data.fields == ("text", "label", "style", "tags")
    assert data.classes == ("animal", "insect")
    assert data[0].fields == {"text": "ant", "label": 0, "style": None, "tags": []}
    assert data[1].fields == {"text": "bee", "label": 1, "style": "flat", "tags": ["small"]}
    assert opened(tmp_path).fields == ("text", "label")
    other = opened(tmp_path, label_column="text", text_column="label")
    assert other.classes == ("ant", "bee")
    assert other.captions() == ["animal", "insect"]


def test_metadata_integer_labels(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    metadata(tmp_path, [{"file_name": "a.png", "label": 3}, {"file_name": "b.png", "label": 0}])
    data = opened(tmp_path)
    assert data.labels() == [1, 0]
    assert data.classes == ("0", "3")
    metadata(tmp_path, [{"file_name": "a.png", "label": -1}, {"file_name": "b.png", "label": 0}])
    with pytest.raises(UserError, match=r"label -1 .* is negative"):
        opened(tmp_path)


def test_metadata_wins_and_the_rest_fills_in(tmp_path: Path) -> None:
    save(tmp_path, ["cat/1.png", "cat/2.png", "dog/3.png", "dog/unlisted.png"])
    (tmp_path / "cat/1.txt").write_text("side-car")
    (tmp_path / "cat/2.txt").write_text("side-car")
    rows = [{"file_name": "cat/1.png", "text": "from metadata"}, {"file_name": "cat/2.png"}, {"file_name": "dog/3.png"}]
    metadata(tmp_path, [*rows, {"file_name": "gone.png"}, {"file_name": "../outside.png"}])
    data = opened(tmp_path)
    assert data.captions() == ["from metadata", "side-car", ""]
    assert data.classes == ("cat", "dog")
    assert data.scan.missing == ("gone.png", "../outside.png")
    assert data.notes[0] == "1 image is not listed in the metadata and was left out"


def test_metadata_of_a_sub_folder_governs_only_it(tmp_path: Path) -> None:
    save(tmp_path, ["a/1.png", "a/2.png", "b/3.png"])
    metadata(tmp_path / "a", [{"file_name": "1.png", "text": "one"}])
    data = opened(tmp_path)
    assert data.scan.files == ("a/1.png", "b/3.png")
    assert data.captions() == ["one", ""]


def test_several_rows_of_one_image_are_several_captions_of_one_example(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    metadata(tmp_path, [{"file_name": n, "text": t} for n, t in [("b.png", "3"), ("a.png", "1"), ("a.png", "2")]])
    data = opened(tmp_path)
    assert data.captions() == ["1", "3"]
    assert data.caption_choices() == ((("1", 0.5), ("2", 0.5)), (("3", 1.0),))


def test_metadata_csv(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    (tmp_path / "metadata.csv").write_text('file_name,text,label\nb.png,"a, b",1\na.png,,0\n')
    data = opened(tmp_path)
    assert data.captions() == ["", "a, b"]
    assert data.labels() == [0, 1]


def test_partly_labelled_metadata_gives_a_warning_and_no_labels(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    metadata(tmp_path, [{"file_name": "a.png", "label": "x"}, {"file_name": "b.png"}])
    data = opened(tmp_path)
    assert data.classes is None
    assert data.notes == ("1 of 2 images has no label, so the set has no labels",)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2 of .* is not JSON"),
        ("[1]", "line 2 of .* is not a JSON object"),
        ('{"text": "x"}', "line 2 of .* has no file_name"),
    ],
)
def test_broken_metadata_names_the_line(tmp_path: Path, line: str, message: str) -> None:
    save(tmp_path, ["a.png"])
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n' + line + "\n")
    with pytest.raises(UserError, match=message):
        opened(tmp_path)


def test_unknown_column_names_its_neighbour(tmp_path: Path) -> None:
    save(tmp_path, ["a.png"])
    metadata(tmp_path, [{"file_name": "a.png", "style": "flat"}])
    with pytest.raises(UserError, match=r"'styel'.*did you mean 'style'"):
        opened(tmp_path, columns=("styel",))
    with pytest.raises(UserError, match="columns lists 'label', which is read anyway"):
        opened(tmp_path, columns=("label",))
    with pytest.raises(UserError, match="text_column 'caption' is in no row"):
        opened(tmp_path, text_column="caption")


def test_unreadable_files_are_listed_and_skipped(tmp_path: Path) -> None:
    save(tmp_path, ["good.png"])
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>not an image</html>")
    truncated(tmp_path / "half.png")
    data = opened(tmp_path)
    assert data.scan.files == ("good.png", "half.png")
    assert [name for name, _ in data.unreadable] == ["empty.png", "page.jpg"]
    assert data.unreadable[0][1] == "the file is empty"
    assert "web page" in data.unreadable[1][1]
    with pytest.raises(UnreadableImage) as caught:
        data[1]
    assert caught.value.path == "half.png"
    assert [name for name, _ in data.unreadable] == ["empty.png", "page.jpg", "half.png"]


def test_images_above_the_setting_are_unreadable(tmp_path: Path) -> None:
    save(tmp_path, ["small.png"])
    noise(0, 16, 16).save(tmp_path / "whole.webp")
    noise(0, 16, 16).save(tmp_path / "parts.png")
    noise(0, 40, 40).save(tmp_path / "huge.png")
    data = opened(tmp_path, max_pixels=210)
    assert data.scan.files == ("parts.png", "small.png")
    reasons = dict(data.unreadable)
    assert reasons["whole.webp"].startswith("16x16 pixels exceed data.max_pixels = 210, and it cannot be read in parts")
    assert reasons["huge.png"].startswith("40x40 pixels exceed data.max_pixels = 210 more than 1.25 times: raise it")


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        opened(tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds no images"):
        opened(tmp_path)
    metadata(tmp_path, [{"file_name": "gone.png"}])
    with pytest.raises(UserError, match="holds no images, though its metadata names 1 that are missing"):
        opened(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "metadata.jsonl")
    (tmp_path / "gone.png").touch()
    with pytest.raises(UserError, match=r"no image in .* gone\.png, fails with: the file is empty"):
        opened(tmp_path)


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    save(tmp_path / "store", ["a.png"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set/link").symlink_to(tmp_path / "store")
    (tmp_path / "set/loop").symlink_to(tmp_path / "set")
    assert opened(tmp_path / "set").scan.files == ("link/a.png",)


def test_fingerprint_follows_content_not_time(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    first = opened(tmp_path)
    os.utime(tmp_path / "a.png", (0, 0))
    assert opened(tmp_path).fingerprint() == first.fingerprint()
    assert opened(tmp_path, size=9).pixel_key() != first.pixel_key()
    assert opened(tmp_path, flip=True).pixel_key() == first.pixel_key()
    assert opened(tmp_path, flip=True).fingerprint() != first.fingerprint()
    (tmp_path / "a.txt").write_text("caption")
    captioned = opened(tmp_path)
    assert captioned.pixel_key() == first.pixel_key()
    assert captioned.fingerprint() != first.fingerprint()
    noise(7).save(tmp_path / "a.png")
    assert opened(tmp_path).pixel_key() != first.pixel_key()


def test_small_images_are_noted(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    assert opened(tmp_path, size=(9, 8)).notes == ("2 of 2 images are smaller than 9x8 and are enlarged",)


def test_progress_counts_files(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    seen: list[tuple[int, int]] = []
    FolderDataset(FolderConfig(path=tmp_path, size=8), progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    "options", [{"background": "plaid"}, {"size": 0}, {"resize": "pad", "crop": "random"}, {"sise": 8}]
)
def test_impossible_configurations(tmp_path: Path, options: dict[str, object]) -> None:
    with pytest.raises((ValidationError, UserError)):
        FolderConfig.model_validate({"path": tmp_path, **options})


def test_where_chooses_rows_by_their_columns(tmp_path: Path) -> None:
    save(tmp_path, ["a.png", "b.png"])
    metadata(tmp_path, [{"file_name": "a.png", "tone": 0, "text": "a"}, {"file_name": "b.png", "tone": 1, "text": "b"}])
    data = opened(tmp_path, where={"tone": 1})
    assert data.scan.files == ("b.png",)
    assert data.captions() == ["b"]
    with pytest.raises(UserError, match="column 'tune', which is in no row"):
        opened(tmp_path, where={"tune": 1})
    with pytest.raises(UserError, match="fits none of the 2 rows"):
        opened(tmp_path, where={"tone": 7})


def test_at_most_so_many_images_are_used_and_an_added_one_displaces_one(tmp_path: Path) -> None:
    save(tmp_path, [f"{i}.png" for i in range(20)])
    config = FolderConfig(path=tmp_path, size=8, most_images=7)
    before = FolderDataset(config)
    assert len(before) == 7
    assert "13 of 20 images are not used: data.most_images" in before.notes
    save(tmp_path, ["further.png"])
    after = FolderDataset(config)
    assert len(after) == 7
    assert len(set(before.scan.files) - set(after.scan.files)) <= 1
    assert len(FolderDataset(config.model_copy(update={"most_images": 100}))) == 21
