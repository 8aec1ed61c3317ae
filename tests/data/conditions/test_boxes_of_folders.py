"""Boxes beside images: framed as the image is, from COCO and metadata alike, and every mistake named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.config import BoxesConfig
from sfumato.data.conditions.with_fields import WithFields
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.transforms import clip_boxes
from sfumato.errors import UserError

BOXES = {"0.png": [("dog", (20, 8, 24, 16))], "1.png": [("cat", (4, 30, 20, 12)), ("dog", (0, 0, 8, 8))], "2.png": []}
SIZES = {"0.png": (32, 96), "1.png": (64, 40), "2.png": (16, 24)}


def images(root: Path) -> Path:
    """Black images whose first box is white."""
    (root / "images").mkdir(parents=True)
    for name, (height, width) in SIZES.items():
        pixels = np.zeros((height, width, 3), np.uint8)
        for _, (x, y, w, h) in BOXES[name][:1]:
            pixels[y : y + h, x : x + w] = 255
        Image.fromarray(pixels).save(root / "images" / name)
    return root


def as_metadata(root: Path, boxes: dict[str, Any] | None = None) -> Path:
    given = boxes or {n: [{"label": label, "bbox": list(box)} for label, box in group] for n, group in BOXES.items()}
    rows = [{"file_name": f"images/{name}", "boxes": group} for name, group in given.items()]
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def as_coco(root: Path) -> Path:
    content = {
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        "images": [{"id": 70 + i, "file_name": name} for i, name in enumerate(BOXES)],
        "annotations": [
            {"image_id": 70 + i, "category_id": {"dog": 18, "cat": 3}[label], "bbox": list(box), "iscrowd": 0}
            for i, group in enumerate(BOXES.values())
            for label, box in group
        ],
    }
    content["annotations"].append({"image_id": 72, "category_id": 3, "bbox": [0, 0, 9, 9], "iscrowd": 1})
    (root / "annotations").mkdir()
    (root / "annotations" / "instances.json").write_text(json.dumps(content))
    return root


def opened(root: Path, config: BoxesConfig | None = None, **options: object) -> WithFields:
    folder = FolderDataset(FolderConfig.model_validate({"path": root, "size": [16, 24], **options}))
    return WithFields(folder, [FolderBoxes(folder, config or BoxesConfig())])


def names_of(data: WithFields) -> tuple[str, ...]:
    source = data.sources[0]
    assert isinstance(source, FolderBoxes)
    return source.names


@pytest.mark.parametrize("options", [{}, {"crop": "random", "flip": True}, {"resize": "pad", "background": "black"}])
def test_a_box_stays_on_its_object(options: dict, tmp_path: Path) -> None:
    data = opened(as_metadata(images(tmp_path)), BoxesConfig(visible=0.0), **options)
    for index in (0, 1):
        for example in [data[index], *(data.variant(index, seed) for seed in range(8))]:
            expected = torch.zeros(16, 24)
            white = names_of(data).index(BOXES[f"{index}.png"][0][0])
            for box, category in zip(example.fields["boxes"], example.fields["categories"], strict=True):
                if category == white:
                    x, y, w, h = (side * value for side, value in zip((24, 16, 24, 16), box, strict=True))
                    expected[round(y) : round(y + h), round(x) : round(x + w)] = 1
            seen = (example.image[0] > 127).float()
            assert (expected - seen).abs().mean() < 0.04, (index, example.fields["boxes"])


def test_coco_and_metadata_say_the_same(tmp_path: Path) -> None:
    one = opened(as_metadata(images(tmp_path / "a")))
    other = opened(as_coco(images(tmp_path / "b")))
    assert names_of(one) == names_of(other) == ("cat", "dog")
    for index in range(3):
        assert one[index].fields == other[index].fields
    assert other[2].fields == {"boxes": [], "categories": []}
    assert one[1].fields["categories"] == [0]  # the dog is cut off


def test_classes_txt_orders_the_categories(tmp_path: Path) -> None:
    for place in (as_metadata(images(tmp_path / "a")), as_coco(images(tmp_path / "b"))):
        (place / "classes.txt").write_text("dog\nbird\ncat\n")
        data = opened(place)
        assert names_of(data) == ("dog", "bird", "cat")
        assert data[0].fields["categories"] == [0]
        assert data[1].fields["categories"] == [2]


def test_clipped_boxes_are_dropped_under_a_visible_share() -> None:
    boxes = np.array([[-0.5, 0, 1, 0.5], [0.9, 0.9, 0.4, 0.4], [0.2, 0.2, 0.1, 0.1], [1.5, 0, 0.2, 0.2]])
    clipped, kept = clip_boxes(boxes, 0.25)
    np.testing.assert_allclose(clipped[:3], [[0, 0, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [0.2, 0.2, 0.1, 0.1]], atol=1e-12)
    assert kept.tolist() == [True, False, True, False]
    assert clip_boxes(boxes, 0.5)[1].tolist() == [True, False, True, False]
    assert clip_boxes(boxes, 0.51)[1].tolist() == [False, False, True, False]
    assert clip_boxes(boxes, 0.0)[1].tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"label": "dog", "bbox": [5, 5, -3, 4]}, r"box 1 of images/0.png has the size -3x4"),
        ({"label": "dog", "bbox": [90, 5, 20, 4]}, r"box 1 of images/0.png is \[90, 5, 20, 4\] and reaches outside"),
        ({"label": "dog", "box": [0.5, 0, 0.6, 0.2]}, r"reaches outside the image, fractions of it"),
        ({"bbox": [1, 1, 2, 2]}, r"box 1 of images/0.png has no label"),
        ({"label": "dog", "bbox": [1, 1, 2]}, r"has no four numbers"),
        ("dog", r"box 1 of images/0.png is 'dog': give an object"),
    ],
)
def test_a_wrong_box_is_named(entry: object, message: str, tmp_path: Path) -> None:
    root = as_metadata(images(tmp_path), {"0.png": [entry]})
    with pytest.raises(UserError, match=message):
        opened(root)


def test_labels_and_files_that_are_missing_are_named(tmp_path: Path) -> None:
    root = as_metadata(images(tmp_path))
    (root / "classes.txt").write_text("dog\nbird\n")
    with pytest.raises(UserError, match=r"has the label 'cat', which is not among the 2 categories: dog, bird"):
        opened(root)
    with pytest.raises(UserError, match=r"conditions.boxes.file .*there.json does not exist"):
        opened(root, BoxesConfig(file="there.json"))
    (root / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match=r"has no boxes: no image has 'boxes' in its metadata; give a COCO file"):
        opened(root)
    as_coco(root)
    (root / "more.json").write_text((root / "annotations" / "instances.json").read_text())
    with pytest.raises(UserError, match=r"several COCO files \(more.json, annotations/instances.json\)"):
        opened(root)
