"""What a task is tried on: held-out scenes of the toy world, or held-out images of a folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sfumato.cli.progress import counting
from sfumato.cli.run_configuration import with_data
from sfumato.config import parse, read_source
from sfumato.data.conditions.config import HOLES, HoleKind
from sfumato.data.folder import FolderDataset
from sfumato.data.folder_config import FolderConfig
from sfumato.data.loader import sweep
from sfumato.data.split import split
from sfumato.data.table import DataConfig, open_dataset
from sfumato.data.toyworld.caption import caption
from sfumato.data.toyworld.dataset import ToyWorldConfig
from sfumato.data.toyworld.render import render
from sfumato.data.toyworld.scene import Scene, Split, scene
from sfumato.errors import UserError
from sfumato.images import from_pil, to_pil, to_uint8, to_unit
from sfumato.model import LatentDiffusion
from sfumato.pipeline.request import DEFAULT_STEPS, SampleRequest
from sfumato.training.conditions import data_config_for
from sfumato.training.data import HeldOut, groups_of
from sfumato.training.diffusion_run import DiffusionRun

USUAL = "zoo:toy/text"
"""Whose words the toy world is described with, where the run's own configuration is not there: all of zoo:toy agree."""


@dataclass(frozen=True)
class Given:
    """Images to try a model on.

    Attributes:
        model: what is measured.
        images: (N, 3, H, W) uint8.
        what: a phrase that describes them.
        scenes: those behind the images, of the toy world; None: images of a folder.
        world: the toy world that they are of.
        texts: captions, None where there are none or they are not wanted.
        holes: the kinds of masks that the model was trained with.
        settings: how to sample.
    """

    model: LatentDiffusion
    images: Tensor
    what: str
    settings: SampleRequest
    scenes: tuple[Scene, ...] | None = None
    world: ToyWorldConfig | None = None
    texts: list[str] | None = None
    holes: tuple[HoleKind, ...] = HOLES

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def pil(self) -> list[Image.Image]:
        """The images as the tasks take them."""
        return [to_pil(image) for image in self.images]

    def of_toy_world(self, task: str) -> tuple[tuple[Scene, ...], ToyWorldConfig]:
        """The scenes and their world. Raises UserError for images of a folder."""
        if self.scenes is None or self.world is None:
            raise UserError(f"{task} is measured on the toy world, where the answer is known: leave --data out")
        return self.scenes, self.world


def run_of(model: Path, config: str | None) -> dict[str, Any] | None:
    """The configuration of the run a model is of, as written: that of `config`, else of the run's folder, else None."""
    if config is not None:
        return read_source(config)
    for place in (model / "config.yaml", model.parent / "config.yaml"):
        raw = read_source(str(place)) if place.is_file() else {}
        if "denoiser" in raw and "data" in raw:
            return raw
    return None


def toy_scenes(
    model: LatentDiffusion, raw: dict[str, Any] | None, n: int, part: Split, settings: SampleRequest
) -> Given:
    """The first n scenes of a split that the model was not trained on, in its own words.

    Raises UserError for a model of something else.
    """
    about = model.config.about.get("diffusion", {}).get("data", {})
    if about.get("kind", "toy") != "toy":
        raise UserError("this model was not trained on the toy world: give the folder of its images as --data")
    run = parse(raw or read_source(USUAL), DiffusionRun, "the model's run")
    known = run.data if isinstance(run.data, ToyWorldConfig) else ToyWorldConfig()
    seed = about.get("seed", known.seed)
    world = known.model_copy(update={"size": model.config.image_size, "seed": seed, "split": part, "length": n})
    scenes = tuple(scene(world.seed, index, part, world.vocabulary) for index in range(n))
    return Given(
        model,
        torch.cat([render(scenes[first : first + 64], world.size) for first in range(0, n, 64)]),
        f"{part} scenes of the toy world",
        settings,
        scenes,
        world,
        [caption(one) for one in scenes],
        _holes(run),
    )


def folder_images(
    model: LatentDiffusion, raw: dict[str, Any] | None, folder: Path, n: int, captions: bool, settings: SampleRequest
) -> Given:
    """The first n images that the model's run held out, or of all where its configuration is not there.

    Raises UserError where nothing can be read, or captions are wanted and there are none.
    """
    size = list(model.config.image_size)
    config: DataConfig = FolderConfig(path=folder, size=model.config.image_size)
    held_out, kinds = HeldOut(amount=0), HOLES
    if raw is not None:
        run = parse(with_data(raw, folder, (size[0], size[1])), DiffusionRun, "the model's run")
        config, held_out, kinds = data_config_for(run.data, run.conditions), run.held_out, _holes(run)
    dataset = open_dataset(config)
    assert isinstance(dataset, FolderDataset)
    _, aside = split(dataset, held_out.amount, held_out.seed, groups_of(dataset, held_out.by, print))
    source, what = (aside, "held-out images") if len(aside) else (dataset, "images, none known as held out,")
    images: list[Tensor] = []
    texts: list[str] = []
    for batch in sweep(source, 64, range(min(n, len(source))), unreadable=lambda row, error: None):
        images.append(to_uint8(batch.images))
        texts += list(batch.fields.get("text", []))
    if not images:
        raise UserError(f"none of the images in {folder} can be read: give another folder as --data")
    if captions and not texts:
        raise UserError(f"the images in {folder} have no captions: leave --captions out, or see docs/data.md")
    named = f"{what} of {folder.name}"
    return Given(model, torch.cat(images), named, settings, texts=texts if captions else None, holes=kinds)


def _holes(run: DiffusionRun) -> tuple[HoleKind, ...]:
    return HOLES if run.conditions.mask is None else run.conditions.mask.kinds


Make = Callable[[SampleRequest], list[Image.Image]]


def timed(title: str, count: int, settings: SampleRequest, make: Make, share: float = 1.0) -> tuple[Tensor, float]:
    """What a task samples for `count` images, (N, 3, H, W) uint8, and the seconds for each; a bar goes along.

    share: of the steps that is taken, where not all are.
    """
    batches = -(-count // settings.batch)
    t_start = time.perf_counter()
    with counting(title, batches * round((settings.steps or DEFAULT_STEPS) * share), "steps") as advance:
        made = make(replace(settings, callback=lambda step: advance(1, batches * step.total)))
    return stacked(made), (time.perf_counter() - t_start) / count


def stacked(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size as uint8 (N, 3, H, W)."""
    return torch.stack([to_uint8(from_pil(image)) for image in images])


def reconstructed(given: Given) -> Tensor:
    """The images through the first stage and back, uint8: what a second stage on it can reach."""
    return to_uint8(given.model.reconstruct(to_unit(given.images), 32)).cpu()
