"""Stage 2 conditioned on maps, boxes, small images and masks: conditions stay on their latents, and all trains."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from runs import assert_same_tensors, logged, saved
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.cli.run_configuration import with_data
from sfumato.cli.training_runs import run_diffusion
from sfumato.config import apply_overrides, parse, read_source
from sfumato.data.conditions.config import ConditionsConfig
from sfumato.data.conditions.degrade import degrade
from sfumato.data.dataset import Example, LatentSource
from sfumato.data.loader import Loader, to_unit
from sfumato.data.toyworld.dataset import ToyWorld, ToyWorldConfig
from sfumato.data.toyworld.render import MAP_NAMES
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion, ModelConfig, build, pixel_space
from sfumato.model_folder import load
from sfumato.rng import numpy_generator
from sfumato.training.conditions import data_config_for, with_conditions, with_fields
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.encode import cached_latents

SIZE = 32
TOY = ("semantic", "layout", "super-res", "inpainting", "inpainting-text")
PAPER = ("semantic-synthesis256", "layout2img-openimages256", "bsr-sr", "inpainting-big")
SMALL = [
    f"data.size={SIZE}",
    "denoiser.channels=32",
    "denoiser.channel_multipliers=[1, 2]",
    "denoiser.blocks_per_level=1",
    "denoiser.norm_groups=8",
    "train.steps=2",
    "train.batch=3",
    "train.precision=float32",
    "train.log_every=1",
    "train.workers=0",
]


def first_stage(channels: int) -> LatentDiffusion:
    """An untrained autoencoder with f = 4."""
    config = AutoencoderConfig(
        channels=8, channel_multipliers=(1, 1, 1), blocks_per_level=1, latent_channels=channels, norm_groups=4
    )
    torch.manual_seed(0)
    model = build(ModelConfig(autoencoder=config, image_size=(SIZE, SIZE)))
    model.autoencoder.eval().requires_grad_(False)
    return model


def small(name: str, data: Path | None, *overrides: str) -> DiffusionRun:
    raw = with_data(apply_overrides(read_source(f"zoo:{name}"), SMALL), data)
    if data is None:
        raw["data"]["length"] = 4
    if raw["conditioner"].get("kind") == "layout":
        raw["conditioner"] |= {"depth": 1, "dim": 32}
    return parse(apply_overrides(raw, overrides), DiffusionRun, name)


def toy_folder(root: Path, count: int = 4) -> Path:
    """Scenes of the toy world as files: images, maps, classes, captions, and boxes of both kinds."""
    world = ToyWorld(SIZE, length=count, fields=("text", "map", "boxes"))
    (root / "images").mkdir(parents=True)
    (root / "maps").mkdir()
    rows = []
    for i in range(count):
        example = world[i]
        Image.fromarray(example.image.permute(1, 2, 0).numpy()).save(root / "images" / f"{i}.png")
        Image.fromarray(example.fields["map"].numpy()).save(root / "maps" / f"{i}.png")
        boxes = [
            {"label": MAP_NAMES[c], "box": [x0, y0, x1 - x0, y1 - y0]} for c, x0, y0, x1, y1 in example.fields["boxes"]
        ]
        rows.append({"file_name": f"images/{i}.png", "text": example.fields["text"], "boxes": boxes})
    (root / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "classes.txt").write_text("\n".join(MAP_NAMES) + "\n")
    return root


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_folder(tmp_path_factory.mktemp("data") / "toy")


WITH_WORLD = [(name, "folder") for name in TOY] + [
    (name, "world") for name in ("semantic", "layout", "inpainting-text")
]


@pytest.mark.parametrize(("name", "source"), WITH_WORLD)
def test_a_toy_configuration_trains(name: str, source: str, folder: Path, tmp_path: Path) -> None:
    config = small(f"toy/{name}", folder if source == "folder" else None)
    state = run_diffusion(config, first_stage(3), tmp_path, None)
    assert state.step == 2
    assert state.skipped == 0
    preview = Image.open(tmp_path / "previews" / "samples-00000002.png")
    assert min(preview.size) >= SIZE
    inputs = load(tmp_path).config.conditioning_metadata
    match name:
        case "semantic":
            assert inputs.map is not None
            assert inputs.map.names == MAP_NAMES
            assert len(set(inputs.map.palette)) == len(MAP_NAMES)
        case "layout":
            assert inputs.layout is not None
            assert inputs.layout.names == MAP_NAMES
        case "super-res":
            assert inputs.low_resolution is not None
            assert inputs.low_resolution.model_dump() == {"factor": 4, "degradation": "bicubic"}
        case _:
            assert inputs.mask is not None
            assert inputs.mask.model_dump() == {"keep": -1.0, "hole": 1.0, "fill": "black"}


@pytest.mark.parametrize("name", PAPER)
def test_a_configuration_of_the_paper_trains_small_from_a_folder(name: str, folder: Path, tmp_path: Path) -> None:
    state = run_diffusion(small(f"ldm/{name}", folder), first_stage(3), tmp_path, None)
    assert (state.step, state.skipped) == (2, 0)
    assert load(tmp_path).second is not None


# ---- conditions and their latents


ALL = ConditionsConfig.model_validate(
    {"map": {}, "boxes": {}, "low_resolution": {"factor": 2, "degradation": "bicubic"}, "mask": {"variants": 3}}
)


def pixels_with(conditions: ConditionsConfig, cache: Path) -> tuple[LatentSource, list[Example]]:
    """The toy world in pixel space, where the latent is the image itself; and its examples."""
    config = data_config_for(ToyWorldConfig(size=SIZE, length=5), conditions)
    assert isinstance(config, ToyWorldConfig)
    world, _, _ = with_fields(config.build(), conditions)
    first = pixel_space((SIZE, SIZE))
    latents = cached_latents(first, world, cache, mirrored=True, precision="float32")
    return with_conditions(latents, world, first, config, conditions, cache, "float32"), [world[i] for i in range(5)]


def test_conditions_stay_on_their_latent(tmp_path: Path) -> None:
    source, plain = pixels_with(ALL, tmp_path)
    assert set(source.fields) == {"text", "label", *ALL.gives}
    seen: set[tuple[bool, bytes]] = set()
    for seed in range(24):
        index = seed % 5
        example, original = source.variant(index, seed), plain[index]  # type: ignore[attr-defined]
        image = to_unit(original.image)
        mirrored = not torch.allclose(example.moments.float(), image, atol=1e-3)

        def placed(value: Tensor, mirrored: bool = mirrored) -> Tensor:
            return value.flip(-1) if mirrored else value

        fields = example.fields
        torch.testing.assert_close(example.moments.float(), placed(image), atol=1e-3, rtol=0)
        assert torch.equal(fields["map"], placed(original.fields["map"]))
        expected = degrade(placed(original.image).numpy().copy(), 2, "bicubic", numpy_generator(0))
        grown = fields["low_resolution"]
        assert grown.shape == image.shape, "at the latent's size"
        assert (
            grown - torch.nn.functional.interpolate(to_unit(torch.from_numpy(expected))[None], SIZE)
        ).abs().mean() < 0.1
        hole = fields["mask"] > 0
        assert torch.equal(fields["mask"], torch.where(hole, 1.0, -1.0))
        torch.testing.assert_close(
            fields["masked_latent"], torch.where(hole, -1.0, placed(image)), atol=1e-3, rtol=0, msg=f"seed {seed}"
        )
        for (x, _, width, _), (x0, _, w0, _) in zip(fields["boxes"].tolist(), original.fields["boxes"], strict=True):
            assert width == pytest.approx(w0)
            assert x == pytest.approx(1 - x0 - w0 if mirrored else x0, abs=1e-6)
        seen.add((mirrored, placed(hole).numpy().tobytes()))
    assert {mirrored for mirrored, _ in seen} == {True, False}
    assert len({hole for _, hole in seen}) > 8, "each image has several masks"


def test_batches_depend_on_seed_and_position_alone(tmp_path: Path) -> None:
    conditions = ALL.model_copy(
        update={"low_resolution": ALL.low_resolution.model_copy(update={"degradation": "bsr-light"})}  # type: ignore[union-attr]
    )
    source, _ = pixels_with(conditions, tmp_path)
    with Loader(source, 3, seed=1, workers=0) as one, Loader(source, 3, seed=1, workers=2, start=2) as other:
        batches = [next(one) for _ in range(4)]
        for batch in batches[2:]:
            again = next(other)
            for name in ("map", "low_resolution", "masked_latent", "mask"):
                assert torch.equal(batch.fields[name], again.fields[name]), name
    small = [batch.fields["low_resolution"] for batch in batches]
    rows = {(batch.index[i], small[k][i].numpy().tobytes()) for k, batch in enumerate(batches) for i in range(3)}
    assert len(rows) == 12, "every reading degrades anew"


# ---- runs


def test_an_interrupted_hybrid_run_is_the_straight_one(tmp_path: Path) -> None:
    """A small image, a hole, a map and a caption at once, the caption and the map dropped by themselves."""
    parts = [
        "conditions={map: {}, low_resolution: {degradation: bsr}, mask: {variants: 2}}",
        "conditioner.parts.map={kind: semantic, classes: 0, channels: 2, void: 255}",
        "conditioner.parts.small={kind: image, field: low_resolution, channels: 3}",
        "train.part_dropout={text: 0.4, map: 0.3}",
        "train.condition_dropout=0.2",
        "train.optimiser.decay=constant",
        "mirrored=true",
    ]

    def trained(path: Path, steps: int) -> None:
        config = small("toy/inpainting-text", None, *parts, f"train.steps={steps}")
        run_diffusion(config, first_stage(3), path, tmp_path / "cache")

    trained(tmp_path / "straight", 4)
    trained(tmp_path / "broken", 2)
    trained(tmp_path / "broken", 4)
    assert_same_tensors(saved(tmp_path / "straight")[0], saved(tmp_path / "broken")[0])
    losses = [[line["loss"] for line in logged(tmp_path / name) if "loss" in line] for name in ("straight", "broken")]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4
    config = load(tmp_path / "broken").config
    assert config.diffusion is not None
    assert config.diffusion.part_dropout == {"text": 0.4, "map": 0.3}


MISTAKES = [
    (
        "toy/semantic",
        "conditions.map=null",
        r"conditioner.classes is 0, .*the data has no class names: set conditions.map=\{\}",
    ),
    (
        "toy/inpainting",
        "conditions.mask=null",
        r"the conditioner reads 'masked_latent', but .*: set conditions.mask=\{\}, or choose another",
    ),
    (
        "toy/semantic",
        "conditioner.stages=3",
        r"conditioner.stages 3 shrinks a map by 8, .*f is 4: set conditioner.stages=2",
    ),
    ("toy/semantic", "conditioner.void=null", r"conditioner.void is None, conditions.map.void 255: give both"),
    (
        "toy/semantic",
        "conditioner.classes=5",
        r"the data has 9 classes, the conditioner 5: set conditioner.classes=9, or 0",
    ),
    ("toy/super-res", "conditions.low_resolution.factor=5", r"32x32 is not a multiple of .*low_resolution.factor 5"),
    ("toy/inpainting", "conditioner.parts.masked_image.channels=4", r"masked latents of 4 channels, .*have 3: set"),
    (
        "toy/inpainting",
        "conditions.mask.folder=masks",
        r"conditions.mask.folder is 'masks', but the data is not a folder",
    ),
]


@pytest.mark.parametrize(("name", "override", "message"), MISTAKES, ids=[override for _, override, _ in MISTAKES])
def test_what_does_not_fit_is_named(name: str, override: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run_diffusion(small(name, None, override), first_stage(3), tmp_path, None)


def test_part_dropout_names_parts(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"train.part_dropout names 'txt', but conditioner.parts has masked_image, mask"
    ):
        small("toy/inpainting-text", None, "train.part_dropout={txt: 0.1}")
    with pytest.raises(UserError, match=r"train.part_dropout names 'map', but conditioner.kind is not composite"):
        small("toy/semantic", None, "train.part_dropout={map: 0.1}")
    with pytest.raises(
        UserError, match=r"train.evaluation samples from captions and labels alone, but conditions sets map"
    ):
        small("toy/semantic", None, "train.evaluation.every=5")
