"""Crops and their places: what the field says, the conditioner that reads it, a training, and sampling whole images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.make_images import metadata
from runs import SECOND_STAGE
from sfumato.cli.training_runs import run_diffusion
from sfumato.conditioning.condition import select
from sfumato.conditioning.crop import CropConfig, CropEmbedder, whole_boxes
from sfumato.config import apply_overrides, parse
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.conditions.latents import placed
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.errors import UserError
from sfumato.model_folder import load
from sfumato.pipeline import pipeline
from sfumato.pipeline.conditions import ConditionInputs, conditions_for, source_of
from sfumato.pipeline.request import SampleRequest
from sfumato.sampling.windows import Window
from sfumato.training.conditions import with_crops, with_fields
from sfumato.training.diffusion_run import DiffusionRun
from training.test_conditions import first_stage

CROPS = ConditionsConfig.model_validate({"crop": {"variants": 3}})


def ramps(root: Path) -> FolderConfig:
    """Images whose red and green are the place of a pixel in the whole, with a caption each."""
    rows = []
    root.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate([(40, 80), (80, 40), (64, 64), (200, 100)]):
        y, x = np.mgrid[0.5:height, 0.5:width]
        pixels = np.stack([x / width * 255, y / height * 255, np.zeros_like(x)], -1)
        Image.fromarray(pixels.round().astype(np.uint8)).save(root / f"{number}.png")
        rows.append({"file_name": f"{number}.png", "text": f"image {number}"})
    metadata(root, rows)
    return FolderConfig(path=root, size=32, crop="random", flip=True)


def test_the_field_is_the_place_of_the_crop(tmp_path: Path) -> None:
    images, _, _ = with_fields(FolderDataset(ramps(tmp_path)), CROPS)
    crops = with_crops(images, CROPS)
    assert len(crops) == 12
    assert crops.captions() == [f"image {row // 3}" for row in range(12)]
    assert len({tuple(crops[row].fields["crop_box"].tolist()) for row in range(12)}) > 8
    for example in [*(crops[row] for row in range(12)), images[0], images[1]]:
        x, y, across, down = example.fields["crop_box"].tolist()
        red, green = example.image[0].float() / 255, example.image[1].float() / 255
        if red[0, 0] > red[0, -1]:  # mirrored: the place is that in the mirrored image
            red = 1 - red
        edge = 0.5 / 32
        assert float(red[:, 0].mean()) == pytest.approx(x + across * edge, abs=0.03)
        assert float(red[:, -1].mean()) == pytest.approx(x + across * (1 - edge), abs=0.03)
        assert float(green[0].mean()) == pytest.approx(y + down * edge, abs=0.03)
        assert float(green[-1].mean()) == pytest.approx(y + down * (1 - edge), abs=0.03)
    mirrored = placed({"crop_box": torch.tensor([0.1, 0.2, 0.3, 0.4])}, True)["crop_box"]
    assert mirrored.tolist() == pytest.approx([0.6, 0.2, 0.3, 0.4])
    with pytest.raises(UserError, match=r"conditions\.crop needs random crops: set data\.crop=random"):
        with_fields(FolderDataset(FolderConfig(path=tmp_path, size=32)), CROPS)


def test_a_new_conditioner_changes_nothing_and_drops_like_others() -> None:
    part = CropEmbedder(CropConfig(dim=6))
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.0, 0.5, 1.0]])
    assert torch.equal(part({"crop_box": boxes}).vector, torch.zeros(2, 6))
    torch.nn.init.normal_(part.layers[2].weight)
    seen = part({"crop_box": boxes}).vector
    assert not torch.allclose(seen[0], seen[1])
    kept = select(torch.tensor([True, False]), part({"crop_box": boxes}), part.null(2, (4, 4))).vector
    assert torch.equal(kept, torch.stack([seen[0], torch.zeros(6)]))


def test_a_model_of_crops_samples_the_whole_image(tmp_path: Path) -> None:
    data = ramps(tmp_path / "images").model_dump(mode="json")
    parts = {"text": SECOND_STAGE["conditioner"], "crop": {"kind": "crop", "dim": 8}}
    raw = {
        **SECOND_STAGE,
        "data": data,
        "conditions": CROPS.model_dump(),
        "conditioner": {"kind": "composite", "parts": parts},
    }
    config = parse(apply_overrides(raw, ["train.steps=2", "mirrored=true"]), DiffusionRun, "crops")
    run_diffusion(config, first_stage(3), tmp_path / "run", None)
    model = load(tmp_path / "run")
    assert model.second is not None
    assert model.second.conditioner is not None
    torch.nn.init.normal_(model.second.conditioner.get_submodule("parts.crop.layers.2").weight)
    request = SampleRequest(prompt=["image 1"], size=(32, 64), steps=2)
    assert pipeline.sample(model, request).images.shape == (1, 3, 32, 64)
    made = conditions_for(source_of(model), 1, (8, 16), ConditionInputs(["image 1"]))
    assert torch.equal(made.fields["crop_box"], whole_boxes(1))
    half = made.of(Window(0, 8, 8, 8))[0].vector
    fields = {"text": ["image 1"], "crop_box": torch.tensor([[0.5, 0.0, 0.5, 1.0]])}
    assert torch.equal(half, model.second.conditioner(fields).vector)
    assert not torch.equal(half, made.of(made.whole)[0].vector)
