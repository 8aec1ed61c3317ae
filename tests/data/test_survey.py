"""`sfumato data` on a folder that has some of everything."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from command_line import Command
from sfumato.data.duplicates import difference_hash, groups_of, near_pairs
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.survey import Survey, survey


def scene(seed: int, side: int = 64) -> Image.Image:
    """Blocks of random grey with fine noise: sharp, and unlike other seeds."""
    g = np.random.default_rng(seed)
    blocks = np.kron(g.integers(30, 220, (8, 8)), np.ones((side // 8, side // 8)))
    noisy = np.clip(blocks + g.normal(0, 6, (side, side)), 0, 255).astype(np.uint8)
    return Image.fromarray(noisy).convert("RGB")


def folder(root: Path) -> Path:
    root.mkdir()
    for number in range(4):
        scene(number).save(root / f"{number}.png")
    scene(0).save(root / "copy.bmp")
    scene(1).save(root / "near.jpg", quality=80)
    Image.new("RGB", (64, 64), "red").save(root / "red.png")
    Image.new("RGB", (64, 64), "blue").save(root / "blue.png")
    scene(9).filter(ImageFilter.GaussianBlur(6)).save(root / "soft.png")
    scene(10, 72).save(root / "just.png")
    (root / "torn.png").write_bytes((root / "2.png").read_bytes()[:700])
    (root / "empty.png").touch()
    (root / "0.txt").write_text("a scene")
    (root / "notes.txt").write_text("of mine")
    return root


def surveyed(root: Path, held_out: tuple[int, ...] = (), **options: object) -> Survey:
    config = FolderConfig.model_validate({"path": root, "size": 64, **options})
    return survey(FolderDataset(config), held_out)


def test_a_folder_with_some_of_everything(tmp_path: Path) -> None:
    found = surveyed(folder(tmp_path / "d"), held_out=(0,))
    assert [(each.files, each.exact, each.across) for each in found.duplicates] == [
        (("0.png", "copy.bmp"), True, True),
        (("1.png", "near.jpg"), False, False),
    ]
    assert found.flat == ("blue.png", "red.png")
    assert found.blurred == ("soft.png",)
    assert "just.png" in found.borderline
    assert [name for name, _ in found.unreadable] == ["empty.png", "torn.png"]
    report = found.as_json()
    assert json.loads(json.dumps(report)) == report
    assert report["captions"] == {"0.png": "a scene"}
    assert report["left_out"] == [{"file": "notes.txt", "reason": "it belongs to no image of the set"}]
    assert report["duplicates"][0]["across_held_out"]
    assert any(
        "both sides of the held-out split, such as '0.png' and 'copy.bmp'" in line for line in report["warnings"]
    )


def test_labels_and_several_captions_by_file(tmp_path: Path) -> None:
    for number, name in enumerate(("a/0.png", "b/1.png")):
        (tmp_path / name).parent.mkdir()
        scene(number).save(tmp_path / name)
    (tmp_path / "a/0.txt").write_text("one\ntwo\n")
    report = surveyed(tmp_path, caption_lines="each").as_json()
    assert report["captions"] == {"a/0.png": ["one", "two"]}
    assert report["labels"] == {"a/0.png": "a", "b/1.png": "b"}
    assert report["classes"] == {"a": 1, "b": 1}
    assert report["sizes"] == {"64 to 127": 2}
    assert not any("classes" in line for line in report["warnings"])


def test_images_that_the_metadata_does_not_list_are_left_out_by_name(tmp_path: Path) -> None:
    for number in range(3):
        scene(number).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.csv").write_text("file_name\n0.png\n2.png\n")
    report = surveyed(tmp_path).as_json()
    assert report["left_out"] == [{"file": "1.png", "reason": "the metadata of its folder does not list it"}]


def test_the_hash_is_the_sign_of_horizontal_differences() -> None:
    ramp = Image.fromarray(np.tile(np.arange(0, 144, dtype=np.uint8), (72, 1)))
    assert difference_hash(ramp) == 0
    assert difference_hash(ramp.transpose(Image.Transpose.FLIP_LEFT_RIGHT)) == 2**64 - 1


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6), st.lists(st.sets(st.integers(0, 63), max_size=6)))
def test_near_pairs_are_those_of_a_plain_comparison(bases: list[int], flips: list[set[int]]) -> None:
    hashes = bases + [bases[i % len(bases)] ^ sum(1 << bit for bit in bits) for i, bits in enumerate(flips)]
    n = len(hashes)
    plain = [(i, j) for i in range(n) for j in range(i + 1, n) if (hashes[i] ^ hashes[j]).bit_count() <= 4]
    assert near_pairs(hashes) == plain


def test_groups_are_what_pairs_connect() -> None:
    assert groups_of([(5, 7), (0, 3), (3, 4), (7, 9)]) == [[0, 3, 4], [5, 7, 9]]


def test_the_command(command: Command, tmp_path: Path) -> None:
    root = folder(tmp_path / "d")
    done = command("data", root, "data.size=64", "held_out.amount=2", "--json")
    assert done.code == 0, done.err
    report = json.loads(done.out)
    assert report["images"] == 11
    kinds = {"captions": dict, "labels": dict, "classes": dict, "duplicates": list, "warnings": list}
    assert {name: type(report[name]) for name in kinds} == kinds
    for name in ("left_out", "unreadable"):
        assert report[name]
        assert all(each.keys() == {"file", "reason"} for each in report[name])
    assert len(report["held_out"]) == 2
    assert report["recommended"]["command"].startswith("sfumato train autoencoder zoo:")
    shown = command("data", root, "data.size=64")
    assert shown.code == 0, shown.err
    assert shown.out.startswith("11 images in ")
    assert "1 image is an exact copy of another, such as 'copy.bmp'" in shown.out
    assert command("data", tmp_path / "none").code == 2
    assert command("data", root, "data.sise=64").code == 2


def test_captions_are_measured_in_tokens(command: Command, tmp_path: Path) -> None:
    """Start, end, and a token a word, as words that occur are one each."""
    for number, text in enumerate(("a red apple", "green", "word " * 40)):
        scene(number).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(text)
    report = json.loads(command("data", tmp_path, "data.size=64", "--json").out)["caption_tokens"]
    assert report == {"shortest": 3, "median": 5, "longest": 42, "max_tokens": 24, "too_long": 1}
    out = command("data", tmp_path, "data.size=64").out
    assert "of 3 to 42 tokens, half of at most 5; 1 are longer than the 24 that zoo:emoji/text reads" in out
    assert "conditioner.max_tokens=42" in out


def test_names_that_are_no_unicode_stop_nothing(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "d"
    root.mkdir()
    try:
        for number in range(2):
            scene(number).save(root / f"caf\udce9{number}.png")  # the byte 0xe9
    except OSError:
        pytest.skip("this file system takes Unicode alone")
    done = command("data", root, "--json", "data.size=64")
    assert done.code == 0, done.err
    assert json.loads(done.out)["held_out"] in ([], ["caf\udce90.png"], ["caf\udce91.png"])
    assert json.loads(done.out)["images"] == 2
    assert command("data", root, "data.size=64").code == 0
