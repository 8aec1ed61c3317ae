"""The parts of a model's condition that a task requires, and checks shared by tasks."""

from collections.abc import Sequence
from typing import TypeVar

from sfumato.conditioning.layout import LayoutConfig
from sfumato.conditioning.spatial import ImageConfig, SemanticConfig
from sfumato.conditioning.table import CompositeConfig, PartConfig
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion
from sfumato.pipeline.conditions import COMMANDS, source_of
from sfumato.pipeline.parts import second_stage

P = TypeVar("P", bound=PartConfig)


def one_each(prompts: Sequence[str] | None, count: int, what: str) -> list[str | None]:
    """A prompt for each of `count` maps, images, ... Raises UserError for another number of them."""
    if prompts is None:
        return [None] * count
    if isinstance(prompts, str) or len(prompts) != count:
        supplied = "one text" if isinstance(prompts, str) else f"{len(prompts)}"
        raise UserError(f"prompts: {supplied} for {count} {what}; give a list with one for each")
    return list(prompts)


def condition_parts(model: LatentDiffusion) -> list[PartConfig]:
    """The configurations of the model's conditioners, in order."""
    config = second_stage(model).config.conditioner
    if config.kind == "none":
        return []
    return list(config.parts.values()) if isinstance(config, CompositeConfig) else [config]


def semantic_part(model: LatentDiffusion) -> SemanticConfig:
    """Raises UserError for a model that is not conditioned on maps."""
    return _part(model, SemanticConfig, "label maps")


def layout_part(model: LatentDiffusion) -> LayoutConfig:
    """Raises UserError for a model that is not conditioned on boxes."""
    return _part(model, LayoutConfig, "boxes")


def image_part(model: LatentDiffusion, field: str, what: str) -> ImageConfig:
    """Raises UserError for a model that does not read this image."""
    for part in condition_parts(model):
        if isinstance(part, ImageConfig) and part.field == field:
            return part
    raise UserError(f"this model is not conditioned on {what}: {_instead(model)}")


def check_image_size(model: LatentDiffusion, height: int, width: int, what: str = "the image") -> None:
    """Raises UserError for an image smaller than one cell of the latent."""
    f = model.autoencoder.factor
    if height < f or width < f:
        raise UserError(
            f"{what} is {height}x{width} (height x width), smaller than one latent cell of {f}x{f} pixels: "
            "give a larger one"
        )


def _part(model: LatentDiffusion, kind: type[P], what: str) -> P:
    for part in condition_parts(model):
        if isinstance(part, kind):
            return part
    raise UserError(f"this model is not conditioned on {what}: {_instead(model)}")


def _instead(model: LatentDiffusion) -> str:
    reads = source_of(model).reads
    if not reads:
        return "it was trained without any condition; use `sfumato sample`"
    command = next((COMMANDS[name] for name in reads if name in COMMANDS), "sfumato sample")
    return f"it is conditioned on {' and '.join(reads)}; use `{command}`"
