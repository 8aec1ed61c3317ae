"""What a task gives a model -> conditions, of the whole canvas or of one window of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Condition, Conditioner
from sfumato.conditioning.layout import LayoutConfig
from sfumato.conditioning.spatial import ImageConfig, SemanticConfig
from sfumato.conditioning.table import CompositeConfig, PartConfig, class_config
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.sampling.windows import Window

P = TypeVar("P", bound=PartConfig)

TASKS = {
    "map": "sfumato paint",
    "boxes": "sfumato compose",
    "low_resolution": "sfumato upscale",
    "masked_latent": "sfumato inpaint",
    "text": "sfumato sample MODEL PROMPT",
    "label": "sfumato sample MODEL --label",
}
"""The command that gives a model the field it is steered by."""


@dataclass(frozen=True)
class Words:
    """What is said beside pictures, maps and boxes."""

    prompt: str | None = None
    label: int | str | None = None
    negative: str | None = None


def one_each(given: Sequence[str] | None, count: int, what: str) -> list[str | None]:
    """A prompt for each of `count` maps, pictures, ... Raises UserError for another number of them."""
    if given is None:
        return [None] * count
    if isinstance(given, str) or len(given) != count:
        told = "one text" if isinstance(given, str) else f"{len(given)}"
        raise UserError(f"prompts: {told} for {count} {what}; give a list with one for each")
    return list(given)


@dataclass(frozen=True)
class Steering:
    """The condition of one sample, and what guidance leads away from, for any window of its canvas (h, w)."""

    conditioner: Conditioner | None
    fields: Mapping[str, Any]
    size: tuple[int, int]
    condition: Condition
    null: Condition | None

    def __call__(self, window: Window) -> tuple[Condition, Condition | None]:
        if (window.height, window.width) == self.size:
            return self.condition, self.null
        condition = self.condition
        if "boxes" in self.fields and self.conditioner is not None:
            condition = self.conditioner(self._fields_of(window))
        return _cut(condition, window), None if self.null is None else _cut(self.null, window)

    def one_by_one(self, window: Window, parts: Sequence[str]) -> list[Condition]:
        """The conditions of a window without some parts of a composite conditioner, and with each of them added."""
        assert isinstance(self.conditioner, Composite)
        return [_cut(c, window) for c in self.conditioner.one_by_one(self._fields_of(window), 1, self.size, parts)]

    def _fields_of(self, window: Window) -> Mapping[str, Any]:
        """With the window's place, through which boxes are seen."""
        h, w = self.size
        if "boxes" not in self.fields or (window.height, window.width) == (h, w):
            return self.fields
        return {**self.fields, "crop": [(window.left / w, window.top / h, window.width / w, window.height / h)]}


def second_stage(model: LatentDiffusion) -> SecondStage:
    """Raises UserError where there is none."""
    if model.second is None:
        raise UserError("this model is an autoencoder only: train a diffusion model on it for this task")
    return model.second


def reads(model: LatentDiffusion) -> tuple[str, ...]:
    """The fields that steer the model."""
    conditioner = second_stage(model).conditioner
    return () if conditioner is None else conditioner.reads


def parts(model: LatentDiffusion) -> list[PartConfig]:
    """The configurations of the model's conditioners, in their order."""
    config = second_stage(model).config.conditioner
    if config.kind == "none":
        return []
    return list(config.parts.values()) if isinstance(config, CompositeConfig) else [config]


def semantic_part(model: LatentDiffusion) -> SemanticConfig:
    """Raises UserError for a model that is not steered by maps."""
    return _part(model, SemanticConfig, "label maps")


def layout_part(model: LatentDiffusion) -> LayoutConfig:
    """Raises UserError for a model that is not steered by boxes."""
    return _part(model, LayoutConfig, "boxes")


def image_part(model: LatentDiffusion, field: str, what: str) -> ImageConfig:
    """Raises UserError for a model that does not read this image."""
    for part in parts(model):
        if isinstance(part, ImageConfig) and part.field == field:
            return part
    raise UserError(f"this model is not steered by {what}: {_instead(model)}")


def _part(model: LatentDiffusion, kind: type[P], what: str) -> P:
    for part in parts(model):
        if isinstance(part, kind):
            return part
    raise UserError(f"this model is not steered by {what}: {_instead(model)}")


def _instead(model: LatentDiffusion) -> str:
    fields = reads(model)
    if not fields:
        return "it was trained without any condition; draw with `sfumato sample`"
    command = next((TASKS[field] for field in fields if field in TASKS), "sfumato sample")
    return f"it is steered by {' and '.join(fields)}; use `{command}`"


def steer(
    model: LatentDiffusion, fields: Mapping[str, Any], words: Words, size: tuple[int, int]
) -> tuple[Steering, bool]:
    """The conditions of one sample on a canvas (h, w), and whether anything steers it (else guidance has no way).

    fields: those that the task makes, each of a batch of one; size: of the latent.
    Raises UserError for words the model does not take, and for conditions it needs that are not given.
    """
    second = second_stage(model)
    known = reads(model)
    for name, field, value in (
        ("text", "text", words.prompt),
        ("label", "label", words.label),
        ("negative prompt", "text", words.negative),
    ):
        if value is not None and field not in known:
            takes = f"it is steered by {' and '.join(known)}" if known else "it was trained without any condition"
            raise UserError(f"this model takes no {name}: {takes}")
    conditioner = second.conditioner
    if conditioner is None:
        return Steering(None, {}, size, Condition(), None), False
    dropped = second.config.condition_dropout > 0
    given = {**fields, **_said(model, words)}
    missing = [field for field in known if field not in given]
    with torch.no_grad():
        null = conditioner.null(1, size) if dropped else None
        if null is not None and not given and words.negative is None:
            return Steering(conditioner, {}, size, null, null), False
        whole = {**given, **_empty(model, missing)}
        unmet = [field for field in missing if field not in whole]
        if unmet:
            option = {"text": "give a prompt", "label": "give a label"}.get(unmet[0])
            way = option or f"this task does not give it; use `{TASKS.get(unmet[0], 'sfumato sample')}`"
            raise UserError(f"this model is steered by {' and '.join(known)}: {way}")
        if words.negative is not None:
            null = conditioner({**whole, "text": [words.negative]})
        return Steering(conditioner, whole, size, conditioner(whole), null), True


def _said(model: LatentDiffusion, words: Words) -> dict[str, Any]:
    said: dict[str, Any] = {}
    if words.prompt is not None:
        said["text"] = [words.prompt]
    if words.label is not None:
        said["label"] = torch.tensor([model.class_index(words.label)], device=model.device)
    return said


def _empty(model: LatentDiffusion, missing: list[str]) -> dict[str, Any]:
    """What stands for words that are not given, where the model knows the case without: the empty text, no class."""
    made: dict[str, Any] = {}
    if "text" in missing and _went_without(model, "text"):
        made["text"] = [""]
    config = class_config(second_stage(model).config.conditioner)
    learned = config.classes if isinstance(config, ClassConfig) and config.null == "learned" else None
    if "label" in missing and learned is not None and _went_without(model, "label"):
        made["label"] = torch.tensor([learned], device=model.device)
    return made


def _went_without(model: LatentDiffusion, field: str) -> bool:
    """Whether the field was dropped in training, with everything or as a part of its own."""
    second = second_stage(model)
    if second.config.condition_dropout > 0:
        return True
    if not isinstance(second.conditioner, Composite):
        return False
    parts = [(name, part) for name, part in second.conditioner.parts.items() if isinstance(part, Conditioner)]
    reading = [name for name, part in parts if field in part.reads]
    return bool(reading) and all(second.config.part_dropout.get(name, 0) > 0 for name in reading)


def _cut(condition: Condition, window: Window) -> Condition:
    spatial: Tensor | None = condition.spatial
    return condition if spatial is None else replace(condition, spatial=window.of(spatial))
