"""Folders as they come from disk stations, archives and other tools: nothing is learnt wrongly or ignored silently."""

from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from sfumato.data.dataset import UnreadableImage
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.reading import read_header
from sfumato.data.textfile import read_text
from sfumato.errors import UserError


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 20, 90, 200)).save(root / name)
    return root


def opened(root: Path, **options: object) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


def test_one_nul_does_not_make_a_text_utf_16(tmp_path: Path) -> None:
    """Read so, 'a red' and what follows are six letters of other scripts, all of which exist."""
    (tmp_path / "a.txt").write_bytes(b"a red\0 thing")
    with pytest.raises(UserError, match="byte 5 is NUL"):
        read_text(tmp_path / "a.txt")
    for text in ("Привет, мир", "a red thing"):
        (tmp_path / "a.txt").write_bytes(text.encode("utf-16-le"))
        assert read_text(tmp_path / "a.txt") == text


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="this system has no /proc")
def test_folders_that_the_kernel_makes_up_are_not_read(tmp_path: Path) -> None:
    """Links there lead to every folder of the disk."""
    with pytest.raises(UserError, match="'/proc/self' is a folder of the operating system, without images"):
        opened(Path("/proc/self"))
    folder(tmp_path, "0.png")
    (tmp_path / "link").symlink_to("/proc")
    data = opened(tmp_path)
    assert data.scan.files == ("0.png",)
    assert "folders of the operating system are not read: 'link'" in data.notes


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"])
def test_folders_of_the_system_are_not_read(tmp_path: Path, name: str) -> None:
    data = opened(folder(tmp_path, "a/0.png", "b/1.png", f"a/{name}/0.png", f"{name}/1.png"))
    assert data.scan.files == ("a/0.png", "b/1.png")
    assert data.scan.classes == ("a", "b")
    listed = ", ".join(map(repr, sorted([name, f"a/{name}"])))
    assert f"folders of the operating system are not read: {listed}" in data.notes
    assert not any("operating" in note for note in opened(tmp_path, leave_out=[name, f"a/{name}"]).notes)


def test_empty_classes_and_classes_of_one_image_are_named(tmp_path: Path) -> None:
    folder(tmp_path, "a/0.png", "b/1.png", "b/2.png")
    (tmp_path / "c").mkdir()
    notes = opened(tmp_path).notes
    assert "1 folder is empty: 'c'" in notes
    assert "1 of 2 classes has a single image, such as 'a'" in notes


def test_masks_beside_images_are_doubted_as_a_class(tmp_path: Path) -> None:
    root = folder(tmp_path, *(f"{place}/{i}.png" for place in ("images", "masks") for i in range(2)))
    assert any("'masks' is used as a class: if its images are masks" in note for note in opened(root).notes)
    assert opened(root, leave_out=["masks"]).scan.files == ("images/0.png", "images/1.png")


@pytest.mark.parametrize("text", ['[{"file_name": "0.png"},\n{"file_name": "1.png"}]', '{\n"file_name": "0.png"\n}'])
def test_json_over_several_lines_is_told_from_json_lines(tmp_path: Path, text: str) -> None:
    folder(tmp_path, "0.png", "1.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(
        UserError, match=r"line 1 .* is not JSON .*: write one object a line, or name the file metadata"
    ):
        opened(tmp_path)


def test_annotations_as_coco_has_them_are_named(tmp_path: Path) -> None:
    folder(tmp_path, "0.png")
    (tmp_path / "metadata.json").write_text('{"images": [{"id": 1}], "annotations": []}')
    assert opened(tmp_path).scan.left_out == (
        ("metadata.json", "it is in COCO's form: write one object for each image, with its file_name and text"),
    )


@pytest.mark.parametrize(("form", "reason"), [("AVIF", "damaged AVIF"), ("TIFF", "damaged TIFF")])
def test_half_a_header_is_a_damaged_image_of_its_format(tmp_path: Path, form: str, reason: str) -> None:
    whole = BytesIO()
    Image.linear_gradient("L").save(whole, form)
    (tmp_path / "x.png").write_bytes(whole.getvalue()[: 20 if form != "AVIF" else 100])
    with pytest.raises(UnreadableImage, match=reason):
        read_header(tmp_path / "x.png")


def test_links_that_lead_nowhere(tmp_path: Path) -> None:
    folder(tmp_path, "0.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    found = dict(opened(tmp_path).unreadable)
    assert found == dict.fromkeys(("lost.png", "loop.png"), "it is a link that leads to no file")
