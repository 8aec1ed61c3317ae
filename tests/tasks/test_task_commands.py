"""The commands of the tasks end to end on tiny models, and the mistakes that can be made with them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tiny
from command_line import Command
from sfumato.model import LatentDiffusion
from tasks import steered
from test_bad_input import check

MODELS = {
    "plain": steered.plain,
    "text": tiny.model,
    "masked": steered.masked,
    "small": steered.enlarging,
    "map": steered.semantic,
    "boxes": steered.layout,
}
FAST = ("--steps", 2, "--precision", "float32")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each kind, a picture, a mask, a map and boxes."""
    root = tmp_path_factory.mktemp("tasks")
    for name, make in MODELS.items():
        saved(make(), root / name)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (19, 27, 4), dtype=np.uint8)).save(root / "picture.png")
    hole = np.zeros((19, 27), np.uint8)
    hole[4:12, 5:16] = 255
    Image.fromarray(hole).save(root / "mask.png")
    Image.fromarray(np.zeros((19, 27), np.uint8)).save(root / "no-hole.png")
    Image.fromarray(hole[:-1]).save(root / "other-mask.png")
    Image.fromarray(np.zeros((1, 9, 3), np.uint8)).save(root / "thin.png")
    Image.fromarray((hole > 0).astype(np.uint8) * 3).save(root / "map.png")
    Image.fromarray((hole > 0).astype(np.uint8) * 7).save(root / "unknown.png")
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
    "paint": (["paint", "map", "map.png"], (27, 19)),
    "compose": (["compose", "boxes", "boxes.json"], (24, 16)),
    "compose-pixels": (["compose", "boxes", "pixels.json"], (24, 16)),
    "compose-coco": (["compose", "boxes", "coco.json"], (28, 20)),
    "upscale": (["upscale", "small", "picture.png"], (54, 38)),
    "inpaint": (["inpaint", "masked", "picture.png", "mask.png"], (27, 19)),
    "inpaint-by-text": (["inpaint", "text", "picture.png", "mask.png", "=a red apple", "--jumps", "1,2"], (27, 19)),
    "edit": (["edit", "text", "picture.png", "=a red apple", "--strength", "0.5"], (27, 19)),
    "edit-style": (["edit", "plain", "picture.png", "--style", "mask.png"], (27, 19)),
    "outpaint": (["outpaint", "plain", "picture.png", "--extend", "8,0,3,0"], (38, 19)),
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
    picture = Image.open(tmp_path / "0000.png")
    assert picture.size == size
    facts = picture.text  # type: ignore[attr-defined]
    assert (facts["task"], facts["seed"], facts["steps"], facts["sampler"]) == (command_name, "3", "2", "dpmpp-2m")
    assert facts.get("prompt") == ("a red apple" if "=a red apple" in words else None)
    assert (tmp_path / "grid.png").exists()
    assert "sheet:" in done.out
    if command_name in ("inpaint", "outpaint"):
        assert ": 0\n" in done.out
        assert picture.mode == "RGBA"


def test_pictures_are_numbered_on_and_do_not_depend_on_each_other(command: Command, room: Path, tmp_path: Path) -> None:
    edit = ("edit", room / "plain", room / "picture.png", "--out", tmp_path, *FAST)
    assert command(*edit, "-n", 2, "--seed", 4).code == 0
    assert command(*edit, "--seed", 5).code == 0
    pixels = [np.asarray(Image.open(tmp_path / f"000{i}.png")).tolist() for i in range(3)]
    assert pixels[1] == pixels[2] != pixels[0]
    assert (tmp_path / "grid-0002.png").exists()


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown-class": (
        ["paint", "map", "unknown.png"],
        "class id 7 at row 4, column 5, but this model knows 0 to 4",
    ),
    "map-in-colour": (["paint", "map", "picture.png"], "the map is in colour, but this model's config.yaml records no"),
    "map-of-a-line": (["paint", "map", "thin.png"], r"the map is 1x9 .* smaller than one latent cell of 2x2 pixels"),
    "map-to-boxes": (["paint", "boxes", "map.png"], "not conditioned on label maps: .* boxes and .*`sfumato compose`"),
    "box-outside": (["compose", "boxes", "outside.json"], r"box 1 \(1\) is \[0.6, 0.2, 0.5, 0.5\] .* reaches outside"),
    "negative-box": (["compose", "boxes", "negative.json"], "box 1 .* width and height must be above 0"),
    "no-category": (["compose", "boxes", "no-category.json"], "has the category 4, but this model's are 0 to 3"),
    "pixels-of-what": (["compose", "boxes", "no-frame.json"], "the file gives no width and height of the picture"),
    "no-box": (["compose", "boxes", "no-box.json"], 'box 1 is {"label": 1}: give an object such as'),
    "too-many-boxes": (["compose", "boxes", "many.json"], "4 boxes are given, but this model takes at most 3"),
    "no-list": (["compose", "boxes", "nothing.json"], "hold no list: give"),
    "no-json": (["compose", "boxes", "map.png"], "map.png' is no UTF-8 text, byte 0 is 0x89"),
    "mask-of-another-size": (
        ["inpaint", "masked", "picture.png", "other-mask.png"],
        r"the mask is 18x27 \(height x width\) but the picture is 19x27: give a mask of the picture's size",
    ),
    "no-hole": (["inpaint", "masked", "picture.png", "no-hole.png"], "the mask has no hole: paint white"),
    "thin-picture": (["edit", "plain", "thin.png"], "the image is 1x9 .* smaller than one latent cell of 2x2"),
    "prompt-to-no-text": (
        ["inpaint", "masked", "picture.png", "mask.png", "=a cat"],
        "takes no text: it is conditioned",
    ),
    "prompt-to-nothing": (["edit", "plain", "picture.png", "=a cat"], "takes no text: it was trained without any"),
    "prompt-at-no-strength": (["edit", "plain", "picture.png", "=a cat", "--strength", "0"], "takes no text"),
    "much-strength": (
        ["edit", "plain", "picture.png", "--strength", "1.5"],
        "strength is 1.5: give a number from",
    ),
    "editing-by-maps": (["edit", "map", "picture.png", "--negative", "x"], "takes no negative prompt"),
    "enlarging-elsewhere": (
        ["upscale", "plain", "picture.png"],
        "not conditioned on small pictures: it was trained",
    ),
    "outpainting-nothing": (["outpaint", "plain", "picture.png", "--extend", "0,0,0,0"], "extend is 0,0,0,0: give"),
    "extent-in-words": (["outpaint", "plain", "picture.png", "--extend", "wide"], "--extend 'wide' is not LEFT,TOP"),
    "no-picture": (["edit", "plain", "none.png"], "the picture 'none.png' does not exist"),
    "no-picture-at-all": (["edit", "plain", "boxes.json"], "boxes.json' cannot be read: it is no picture"),
    "window-in-words": (["edit", "plain", "picture.png", "--window", "big"], "--window 'big' is no number of pixels"),
    "odd-window": (["edit", "plain", "picture.png", "--window", "6"], "window is 6 pixels: give a multiple of 4"),
    "no-memory": (["edit", "plain", "picture.png", "--memory", "0"], "--memory is 0: give at least 1"),
    "guidance-without-dropout": (["upscale", "small", "picture.png", "--guidance", "3"], "guidance 3 cannot work"),
    "half-a-jump": (
        ["inpaint", "plain", "picture.png", "mask.png", "--jumps", "5"],
        "--jumps '5' is not LENGTH",
    ),
    "jumps-of-the-trained": (
        ["inpaint", "masked", "picture.png", "mask.png", "--jumps", "5,2"],
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
