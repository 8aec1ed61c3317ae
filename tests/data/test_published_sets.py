"""The lists that the paper's datasets come with, in their real layout: synsets, splits, captions, boxes."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.make_images import save
from sfumato.data.conditions.boxes import FolderBoxes
from sfumato.data.conditions.config import BoxesConfig
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.errors import UserError


def opened(root: Path, **options: Any) -> FolderDataset:
    return FolderDataset(FolderConfig.model_validate({"path": root, "size": 8, **options}))


def test_imagenet_has_the_names_of_its_synsets(tmp_path: Path) -> None:
    save(tmp_path / "train", [f"{synset}/{synset}_{i}.JPEG" for synset in ("n01440764", "n02012849") for i in range(2)])
    save(tmp_path / "train", ["n03126707/n03126707_1.JPEG"])
    (tmp_path / "LOC_synset_mapping.txt").write_text(
        "n01440764 tench, Tinca tinca\nn02012849 crane\nn03126707 crane\nn09999999 nothing here\n"
    )
    found = opened(tmp_path, label_names="LOC_synset_mapping.txt", text_from="label")
    assert found.classes == ("tench", "crane (n02012849)", "crane (n03126707)")
    assert [found[row].fields["text"] for row in (0, 4)] == ["tench", "crane (n03126707)"]
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench\n")
    with pytest.raises(UserError, match=r"has no line for 2 of 3 classes, the first is 'n02012849'"):
        opened(tmp_path, label_names="LOC_synset_mapping.txt")
    with pytest.raises(UserError, match=r"data.label_names .*none.txt does not exist"):
        opened(tmp_path, label_names="none.txt")


def test_celebahq_and_ffhq_are_split_by_lists(tmp_path: Path) -> None:
    save(tmp_path, [f"{number:05d}.png" for number in range(6)])
    (tmp_path / "celebahqtrain.txt").write_text("00001.png\n00004.png\n\n99999.png\n")
    (tmp_path / "ffhqvalidation.txt").write_text("imgs/00002\n")
    assert opened(tmp_path, only="celebahqtrain.txt").scan.files == ("00001.png", "00004.png")
    assert opened(tmp_path, only="ffhqvalidation.txt").scan.files == ("00002.png",)
    (tmp_path / "other.txt").write_text("a.png\n")
    with pytest.raises(UserError, match=r"data.only other.txt names none of the images: it names 'a.png'"):
        opened(tmp_path, only="other.txt")


def test_captions_of_coco_and_of_localized_narratives(tmp_path: Path) -> None:
    save(tmp_path / "val2017", ["000000000139.jpg", "000000000285.jpg"])
    content = {
        "info": {},
        "images": [{"id": 139, "file_name": "000000000139.jpg"}, {"id": 285, "file_name": "000000000285.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 139, "caption": "A woman stands in the dining area "},
            {"id": 2, "image_id": 285, "caption": "A big brown bear"},
            {"id": 3, "image_id": 139, "caption": "A room with chairs"},
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "captions_val2017.json").write_text(json.dumps(content))
    found = opened(tmp_path, captions_file="annotations/captions_val2017.json")
    assert found.caption_choices() == (
        (("A woman stands in the dining area", 0.5), ("A room with chairs", 0.5)),
        (("A big brown bear", 1.0),),
    )
    assert not any("captions_val2017" in name for name, _ in found.scan.left_out), "it is read"
    lines = [{"image_id": "000000000285", "caption": "In this image there is a bear.", "dataset_id": "mscoco"}]
    (tmp_path / "narratives.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert opened(tmp_path, captions_file="narratives.jsonl").captions() == ["", "In this image there is a bear."]
    (tmp_path / "narratives.jsonl").write_text('{"caption": "x"}\n')
    with pytest.raises(UserError, match=r"line 1 of .* has no image_id and caption"):
        opened(tmp_path, captions_file="narratives.jsonl")
    (tmp_path / "instances.json").write_text(json.dumps({**content, "annotations": [{"id": 1, "image_id": 139}]}))
    with pytest.raises(UserError, match=r"is not a caption file like COCO's"):
        opened(tmp_path, captions_file="instances.json")


def test_boxes_of_open_images(tmp_path: Path) -> None:
    save(tmp_path, ["000002b66c9c498e.jpg", "000002b97e5471a0.jpg"], 8, 16)
    heading = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction\n"
    rows = (
        "000002b66c9c498e,xclick,/m/01g317,1,0.25,0.5,0.5,0.75,0,0,0,0\n"
        "000002b66c9c498e,xclick,/m/0284d,1,0.0,1.0,0.0,1.0,0,0,1,0\n"
        "000002b97e5471a0,xclick,/m/0284d,1,0.5,0.75,0.25,1.0,0,0,0,0\n"
    )
    (tmp_path / "train-annotations-bbox.csv").write_text(heading + rows)
    config = BoxesConfig(file="train-annotations-bbox.csv")
    data = opened(tmp_path, size=[8, 16])
    assert FolderBoxes(data, config).names == ("/m/01g317", "/m/0284d")
    (tmp_path / "class-descriptions-boxable.csv").write_text("/m/0284d,Kite\n/m/01g317,Person\n/m/09j2d,Clothing\n")
    boxes = FolderBoxes(data, config)
    assert boxes.names == ("Kite", "Person", "Clothing")
    assert boxes(0, None) == {"boxes": [[0.25, 0.5, 0.25, 0.25]], "categories": [1]}
    assert boxes(1, None) == {"boxes": [[0.5, 0.25, 0.25, 0.75]], "categories": [0]}
    (tmp_path / "train-annotations-bbox.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"has no column ImageID: OpenImages' files of boxes have"):
        FolderBoxes(data, config)
