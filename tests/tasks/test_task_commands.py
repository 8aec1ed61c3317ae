"""The commands of the tasks end to end on tiny models, and the mistakes that can be made with them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import icc
import tiny
from command_line import Command, facts_of
from sfumato.model import LatentDiffusion
from tasks import conditioned
from test_bad_input import check

MODELS = {
    "plain": conditioned.plain,
    "text": tiny.model,
    "masked": conditioned.masked,
    "small": conditioned.enlarging,
    "map": conditioned.semantic,
    "boxes": conditioned.layout,
}
FAST = ("--steps", 2, "--precision", "float32")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, an image, a mask, a map and boxes."""
    root = tmp_path_factory.mktemp("tasks")
    for name, make in MODELS.items():
        saved(make(), root / name)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (19, 27, 4), dtype=np.uint8)).save(root / "image.png")
    hole = np.zeros((19, 27), np.uint8)
    hole[4:12, 5:16] = 255
    Image.fromarray(hole).save(root / "mask.png")
    Image.fromarray(np.zeros((19, 27), np.uint8)).save(root / "no-hole.png")
    Image.fromarray(hole[:-1]).save(root / "other-mask.png")
    Image.fromarray(np.zeros((1, 9, 3), np.uint8)).save(root / "thin.png")
    Image.fromarray((hole > 0).astype(np.uint8) * 3).save(root / "map.png")
    Image.fromarray((hole > 0).astype(np.uint8) * 7).save(root / "unknown.png")
    rough = rng.integers(0, 256, (19, 27, 3), dtype=np.uint8)
    Image.fromarray(rough).save(root / "photo.png")
    Image.fromarray(np.dstack([rough, 255 - hole])).save(root / "erased.png")
    Image.fromarray(hole // 255).save(root / "zero-one.png")
    Image.fromarray((hole > 0).astype(np.uint16) * 3).save(root / "map-16.png")
    Image.fromarray((hole > 0).astype(np.uint16) * 40000).save(root / "unknown-16.png")
    os.mkfifo(root / "pipe.png")
    (root / "zero.png").symlink_to("/dev/zero")
    (root / "folder.png").mkdir()
    for name, boxes in BOXES.items():
        (root / f"{name}.json").write_text(json.dumps(boxes))
    return root


BOXES: dict[str, object] = {
    "boxes": [{"label": 1, "box": [0.1, 0.2, 0.5, 0.5]}],
    "pixels": {"width": 24, "height": 16, "boxes": [{"label": 1, "bbox": [2, 3, 12, 8]}]},
    "coco": {
        "images": [{"id": 4, "width": 28, "height": 20}],
        "annotations": [{"image_id": 4, "category_id": 9, "bbox": [2, 3, 12, 8]}],
        "categories": [{"id": 9, "name": "2"}],
    },
    "outside": [{"label": 1, "box": [0.6, 0.2, 0.5, 0.5]}],
    "negative": [{"label": 1, "box": [0.6, 0.2, -0.5, 0.5]}],
    "no-category": [{"label": 4, "box": [0, 0, 1, 1]}],
    "no-frame": [{"label": 1, "bbox": [2, 3, 12, 8]}],
    "no-box": [{"label": 1}],
    "many": [{"label": 1, "box": [0, 0, 1, 1]}] * 4,
    "nothing": {"objects": []},
}


def saved(model: LatentDiffusion, folder: Path) -> None:
    model.save(folder)


COMMANDS: dict[str, tuple[list[str], tuple[int, int]]] = {
    "paint": (["semantic-to-image", "map", "map.png"], (27, 19)),
    "compose": (["layout-to-image", "boxes", "boxes.json"], (24, 16)),
    "compose-pixels": (["layout-to-image", "boxes", "pixels.json"], (24, 16)),
    "compose-coco": (["layout-to-image", "boxes", "coco.json"], (28, 20)),
    "paint-16-bits": (["semantic-to-image", "map", "map-16.png"], (27, 19)),
    "upscale": (["upscale", "small", "image.png"], (54, 38)),
    "inpaint": (["inpaint", "masked", "image.png", "mask.png"], (27, 19)),
    "inpaint-by-text": (["inpaint", "text", "image.png", "mask.png", "=a red apple", "--jumps", "1,2"], (27, 19)),
    "edit": (["edit", "text", "image.png", "=a red apple", "--strength", "0.5"], (27, 19)),
    "edit-style": (["edit", "plain", "image.png", "--style", "mask.png"], (27, 19)),
    "outpaint": (["outpaint", "plain", "image.png", "--extend", "8,0,3,0"], (38, 19)),
}


def typed(room: Path, words: list[str]) -> list[object]:
    """Words that name something in the room as its path; `=` begins a text."""
    return [word[1:] if word.startswith("=") else room / word if (room / word).exists() else word for word in words]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_task_from_the_command_line(command: Command, room: Path, tmp_path: Path, name: str) -> None:
    words, size = COMMANDS[name]
    command_name, *rest = words
    done = command(command_name, *typed(room, rest), "--out", tmp_path, "--seed", 3, *FAST)
    assert done.code == 0, done
    image = Image.open(tmp_path / "0000.png")
    assert image.size == size
    facts = facts_of(tmp_path / "0000.png")
    assert (facts["task"], facts["seed"], facts["steps"], facts["sampler"]) == (command_name, "3", "2", "unipc")
    assert facts.get("prompt") == ("a red apple" if "=a red apple" in words else None)
    assert facts["grid"]  # the pipeline's record
    assert len(facts["model"]) == 12
    if command_name == "edit":
        assert facts["strength"] == ("0.5" if "--strength" in words else "0.6")
    assert (tmp_path / "grid.png").exists()
    assert "sheet:" in done.out
    if command_name in ("inpaint", "outpaint"):
        assert ": 0\n" in done.out
        assert image.mode == "RGBA"


def test_images_are_numbered_on_and_do_not_depend_on_each_other(command: Command, room: Path, tmp_path: Path) -> None:
    edit = ("edit", room / "plain", room / "image.png", "--out", tmp_path, *FAST)
    assert command(*edit, "-n", 2, "--seed", 4).code == 0
    assert command(*edit, "--seed", 5).code == 0
    pixels = [np.asarray(Image.open(tmp_path / f"000{i}.png")).tolist() for i in range(3)]
    assert pixels[1] == pixels[2] != pixels[0]
    assert (tmp_path / "grid-0002.png").exists()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (
            "erased.png",
            "the mask has transparency, which is used as the mask: the 88 transparent pixels are the hole",
        ),
        ("zero-one.png", "the mask holds values from 0 to 1: those above 0.5, 88 pixels, are the hole"),
    ],
)
def test_masks_of_other_forms_fill_the_same_hole(
    command: Command, room: Path, tmp_path: Path, mask: str, message: str
) -> None:
    for name in ("mask.png", mask):
        done = command(
            "inpaint", room / "masked", room / "photo.png", room / name, "--out", tmp_path / name, "--seed", 1, *FAST
        )
        assert done.code == 0, done
    assert message in done.err
    one, other = (np.asarray(Image.open(tmp_path / name / "0000.png")) for name in ("mask.png", mask))
    assert np.array_equal(one, other)


def test_a_image_with_a_profile_is_filled_and_written_in_srgb(command: Command, room: Path, tmp_path: Path) -> None:
    linear = icc.rgb(icc.SRGB, 1.0, "linear test")
    Image.new("RGB", (27, 19), (128, 128, 128)).save(tmp_path / "linear.png", icc_profile=linear)
    words = ("inpaint", room / "masked", tmp_path / "linear.png", room / "mask.png")
    done = command(*words, "--out", tmp_path / "out", *FAST)
    assert done.code == 0, done
    assert "its colour profile (linear test) was converted to sRGB" in done.err
    with Image.open(tmp_path / "out" / "0000.png") as written:
        assert "icc_profile" not in written.info
        assert np.asarray(written)[0, 0].tolist() == pytest.approx([188] * 3, abs=1)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown-class": (
        ["semantic-to-image", "map", "unknown.png"],
        "class id 7 at row 4, column 5, but this model has 0 to 4",
    ),
    "unknown-class-in-16-bits": (["semantic-to-image", "map", "unknown-16.png"], "class id 40000 at row 4, column 5"),
    "a-pipe": (
        ["edit", "plain", "pipe.png"],
        "the image '.*pipe.png' cannot be read: it is a named pipe, not a regular",
    ),
    "a-device": (["upscale", "small", "zero.png"], "the image '.*zero.png' cannot be read: it is a device"),
    "a-folder": (
        ["inpaint", "masked", "folder.png", "mask.png"],
        "the image '.*folder.png' is a folder: give one of",
    ),
    "a-folder-for-a-mask": (["inpaint", "masked", "photo.png", "folder.png"], "the mask '.*folder.png' is a folder"),
    "a-folder-for-a-map": (
        ["semantic-to-image", "map", "folder.png"],
        "the map '.*folder.png' is a folder: give one of its files",
    ),
    "swapped": (["inpaint", "masked", "mask.png", "photo.png"], r"the mask looks like an image, .* \(IMAGE MASK\)"),
    "swapped-with-alpha": (["inpaint", "masked", "mask.png", "image.png"], "the mask looks like an image"),
    "swapped-with-a-hole": (["inpaint", "masked", "mask.png", "erased.png"], "the image is black and white and the"),
    "map-in-colour": (
        ["semantic-to-image", "map", "image.png"],
        "the map is in colour, but this model's config.yaml records no",
    ),
    "map-of-a-line": (
        ["semantic-to-image", "map", "thin.png"],
        r"the map is 1x9 .* smaller than one latent cell of 2x2 pixels",
    ),
    "map-to-boxes": (
        ["semantic-to-image", "boxes", "map.png"],
        "not conditioned on label maps: .* boxes and .*`sfumato layout-to-image`",
    ),
    "box-outside": (
        ["layout-to-image", "boxes", "outside.json"],
        r"box 1 \(1\) is \[0.6, 0.2, 0.5, 0.5\] .* reaches outside",
    ),
    "negative-box": (["layout-to-image", "boxes", "negative.json"], "box 1 .* width and height must be above 0"),
    "no-category": (
        ["layout-to-image", "boxes", "no-category.json"],
        "has the category 4, but this model's are 0 to 3",
    ),
    "pixels-of-what": (
        ["layout-to-image", "boxes", "no-frame.json"],
        "the file has no width and height of the image",
    ),
    "no-box": (["layout-to-image", "boxes", "no-box.json"], 'box 1 is {"label": 1}: give an object such as'),
    "too-many-boxes": (
        ["layout-to-image", "boxes", "many.json"],
        "4 boxes are given, but this model accepts at most 3",
    ),
    "no-list": (["layout-to-image", "boxes", "nothing.json"], "contains no list: give"),
    "no-json": (["layout-to-image", "boxes", "map.png"], "map.png' is not UTF-8 text, byte 0 is 0x89"),
    "mask-of-another-size": (
        ["inpaint", "masked", "image.png", "other-mask.png"],
        r"the mask is 18x27 \(height x width\) but the image is 19x27: give a mask of the image's size",
    ),
    "no-hole": (["inpaint", "masked", "image.png", "no-hole.png"], "the mask has no hole: paint white"),
    "thin-image": (["edit", "plain", "thin.png"], "the image is 1x9 .* smaller than one latent cell of 2x2"),
    "prompt-to-no-text": (
        ["inpaint", "masked", "image.png", "mask.png", "=a cat"],
        "not trained with text conditioning",
    ),
    "prompt-to-nothing": (["edit", "plain", "image.png", "=a cat"], "not trained with text conditioning; it is unc"),
    "prompt-at-no-strength": (["edit", "plain", "image.png", "=a cat", "--strength", "0"], "not trained with text"),
    "much-strength": (
        ["edit", "plain", "image.png", "--strength", "1.5"],
        "--strength is 1.5: give a number from 0 to 1",
    ),
    "editing-by-maps": (["edit", "map", "image.png", "--negative", "x"], "negative prompt: this model was not trained"),
    "enlarging-elsewhere": (
        ["upscale", "plain", "image.png"],
        "not conditioned on small images: it was trained",
    ),
    "outpainting-nothing": (["outpaint", "plain", "image.png", "--extend", "0,0,0,0"], "extend is 0,0,0,0: give"),
    "extent-in-words": (["outpaint", "plain", "image.png", "--extend", "wide"], "--extend 'wide' is not LEFT,TOP"),
    "no-image": (["edit", "plain", "none.png"], "the image 'none.png' does not exist"),
    "no-image-at-all": (["edit", "plain", "boxes.json"], "boxes.json' cannot be read: it is not an image"),
    "window-in-words": (["edit", "plain", "image.png", "--window", "big"], "--window 'big' is not a number of pixels"),
    "odd-window": (["edit", "plain", "image.png", "--window", "6"], "window is 6 pixels: give a multiple of 4"),
    "no-memory": (
        ["edit", "plain", "image.png", "--memory", "0"],
        "--memory is 0: give a whole number from 1 to 10,000,000",
    ),
    "guidance-without-dropout": (["upscale", "small", "image.png", "--guidance", "3"], "guidance 3 is not possible"),
    "half-a-jump": (
        ["inpaint", "plain", "image.png", "mask.png", "--jumps", "5"],
        "--jumps '5' is not LENGTH",
    ),
    "jumps-of-the-trained": (
        ["inpaint", "masked", "image.png", "mask.png", "--jumps", "5,2"],
        "jumps are for models that were not trained to inpaint",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_sentence(command: Command, room: Path, tmp_path: Path, name: str) -> None:
    words, sentence = MISTAKES[name]
    command_name, *rest = words
    check(command(command_name, *typed(room, rest), "--out", tmp_path / "out", *FAST), sentence)
    assert not list(tmp_path.rglob("*.png"))


def test_sampling_larger_than_trained(command: Command, room: Path, tmp_path: Path) -> None:
    large = ("--size", "48x48", "-n", 1, "--memory", 1)
    assert command("sample", room / "plain", *large, "--out", tmp_path / "a", *FAST).code == 0
    assert command("sample", room / "plain", *large, "--window", "auto", "--out", tmp_path / "b", *FAST).code == 0
    one, other = (np.asarray(Image.open(tmp_path / name / "0000.png")) for name in "ab")
    assert one.shape == other.shape == (48, 48, 3)
    assert not np.array_equal(one, other)
