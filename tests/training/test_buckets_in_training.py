"""Training on images of several sizes: interrupted runs, two processes, conditions, the model's memory of sizes."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from data.make_images import metadata, save
from forks import COMMAND, Forks
from runs import (
    FIRST_STAGE,
    SECOND_STAGE,
    assert_ends_alike_when_interrupted,
    assert_same_up_to_rounding,
)
from sfumato.cli.training_runs import run_autoencoder, run_diffusion
from sfumato.config import apply_overrides, parse
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.loader import Loader
from sfumato.data.toyworld.dataset import ToyWorld
from sfumato.errors import UserError
from sfumato.model_folder import load
from sfumato.pipeline.plan import plan
from sfumato.pipeline.request import SampleRequest
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.classifier import ClassifierRun
from sfumato.training.conditions import data_config_for, preview_fields, with_conditions, with_fields
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.encode import cached_latents
from sfumato.training.second_stage import check_sizes
from training.test_conditions import first_stage
from training.test_processes import finished, in_two_processes
from training.test_shards_in_training import STEADY

SHAPES = [(24, 16), (16, 24), (18, 18), (30, 20), (20, 30), (24, 15), (15, 15)]


def images(root: Path) -> dict[str, Any]:
    """21 images in three shapes with captions; as the section `data`."""
    rows = []
    for number in range(21):
        height, width = SHAPES[number % len(SHAPES)]
        save(root, [f"{number:02d}.png"], height, width)
        rows.append({"file_name": f"{number:02d}.png", "text": f"image {number}"})
    metadata(root, rows)
    return {"kind": "folder", "path": str(root), "size": 16, "buckets": {"step": 4}}


def test_a_run_on_buckets_ends_alike_however_it_was_interrupted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], forks: Forks
) -> None:
    data = images(tmp_path / "images")
    changes = ["train.steps=3", "train.batch=4", "train.preview_every=3", "model.bottleneck={kind: kl}"]
    stage = apply_overrides({**FIRST_STAGE, "data": data}, [*changes, "loss.latent_noise.gamma=1"])
    run_autoencoder(parse(stage, AutoencoderRun, "first"), tmp_path / "first", None)
    said = " ".join(capfd.readouterr().err.split())
    held = re.search(r"of the training images: 12x20 (\d), 16x16 (\d), 20x12 (\d) ", said)
    assert held is not None, said
    assert sum(map(int, held.groups())) == 20
    first, cache = load(tmp_path / "first"), tmp_path / "cache"
    assert first.config.trained_sizes == ((12, 20), (16, 16), (20, 12))
    assert Image.open(next((tmp_path / "first" / "previews").glob("*.png"))).width > 0

    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump({**SECOND_STAGE, "data": data}))
    command = ["train", "diffusion", str(file), "--autoencoder", str(tmp_path / "first")]
    settings = [*STEADY, "mirrored=true", "train.save_every=2"]
    out = ["--out", str(tmp_path / "two"), "train.batch=2", "train.accumulate=2"]
    process = in_two_processes(forks, COMMAND, *command, *settings, *out)

    config = parse(
        apply_overrides({**SECOND_STAGE, "data": data}, [*settings, "train.batch=8"]), DiffusionRun, "second"
    )
    assert_ends_alike_when_interrupted(tmp_path, lambda out: run_diffusion(config, first, out, cache), step=3)
    said = " ".join(capfd.readouterr().err.split())
    assert re.search(r"[23] buckets hold fewer images than the 8 of a step, whose batches repeat them: 12x20 \d", said)

    finished(process)
    assert_same_up_to_rounding(tmp_path / "straight", tmp_path / "two")
    trained = load(tmp_path / "straight")
    assert trained.config.trained_sizes == first.config.trained_sizes
    made = trained.sample(["image 3"], size=(12, 20), steps=2, as_tensor=True)
    assert made.shape == (1, 3, 12, 20)
    assert plan(trained, SampleRequest(prompt=["x"], size=(20, 12))).window == (10, 6)


def test_conditions_keep_to_images_of_all_sizes(tmp_path: Path) -> None:
    """Maps, boxes, small images and masks of a batch have the size of its latents and belong to its images."""
    rows = []
    for name in ("images", "maps"):
        (tmp_path / name).mkdir()
    for number, size in enumerate([(48, 48), (32, 64), (64, 32), (32, 64), (64, 32), (48, 48)]):
        example = ToyWorld(size, number, fields=("text", "map", "boxes"), length=1)[0]
        Image.fromarray(example.image.permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(example.fields["map"].numpy()).save(tmp_path / "maps" / f"{number}.png")
        found = [{"label": str(c), "box": [x0, y0, x1 - x0, y1 - y0]} for c, x0, y0, x1, y1 in example.fields["boxes"]]
        rows.append({"file_name": f"images/{number}.png", "text": str(number), "boxes": found})
    metadata(tmp_path, rows)
    (tmp_path / "classes.txt").write_text("".join(f"{number}\n" for number in range(40)))
    conditions = ConditionsConfig.model_validate(
        {"map": {}, "boxes": {}, "low_resolution": {"factor": 4}, "mask": {"variants": 2, "fill": "black"}}
    )
    config = FolderConfig.model_validate({"path": tmp_path, "size": 48, "buckets": {"step": 16}})
    data = data_config_for(config, conditions)
    assert isinstance(data, FolderConfig)
    images, _, _ = with_fields(FolderDataset(data), conditions)
    first = first_stage(3)
    latents = cached_latents(first, images, tmp_path / "cache", mirrored=True, precision="float32")
    source = with_conditions(latents, images, first, data, conditions, tmp_path / "cache", "float32")
    seen = set()
    with Loader(source, 2, 0, workers=0) as loader:
        for _ in range(12):
            batch = next(loader)
            h, w = batch.moments.shape[2:]
            seen.add((h, w))
            assert batch.fields["low_resolution"].shape == (2, 3, h, w)
            assert batch.fields["masked_latent"].shape == (2, 3, h, w)
            assert batch.fields["mask"].shape == (2, 1, h, w)
            assert batch.fields["map"].shape == (2, 4 * h, 4 * w)
            for place, row in enumerate(batch.index):
                own = images[row].fields["map"]
                assert any(torch.equal(batch.fields["map"][place], side) for side in (own, own.flip(-1)))
                assert len(batch.fields["boxes"][place]) == len(images[row].fields["boxes"])
    assert seen == {(12, 12), (8, 16), (16, 8)}
    fields, shown = preview_fields(images, 3, first, data, conditions)
    assert fields["low_resolution"].shape[2:] == tuple(side // 4 for side in shown.shape[2:])
    assert len(shown) == 2


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    data = {"kind": "folder", "path": str(tmp_path), "size": 24, "buckets": {"step": 3}}
    with pytest.raises(UserError, match=r"data\.buckets\.step 3 is not a multiple of f = 2, which"):
        parse({**FIRST_STAGE, "data": data}, AutoencoderRun, "first")
    run = parse({**SECOND_STAGE, "data": {**data, "buckets": {"step": 4}}}, DiffusionRun, "second")
    with pytest.raises(UserError, match=r"step 4 is not a multiple of 8, f = 4 times the 2 of denoiser\.channel_mul"):
        check_sizes(run, first_stage(3))
    with pytest.raises(UserError, match=r"data\.buckets gives images of several sizes, and a classifier needs one"):
        parse({"classifier": {"classes": 2}, "schedule": {"kind": "cosine"}, "data": data}, ClassifierRun, "c")
