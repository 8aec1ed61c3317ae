"""Conditions: the only place where prompts, labels, maps, boxes and images become a network's `Condition`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Condition, Conditioner, take
from sfumato.conditioning.crop import CROP, whole_boxes
from sfumato.conditioning.table import ConditionerConfig, class_config
from sfumato.config import nearest
from sfumato.errors import UserError
from sfumato.pipeline.parts import Model, second_stage
from sfumato.sampling.windows import Window

COMMANDS = {
    "map": "sfumato semantic-to-image",
    "boxes": "sfumato layout-to-image",
    "low_resolution": "sfumato upscale",
    "masked_latent": "sfumato inpaint",
    "text": "sfumato sample MODEL PROMPT",
    "label": "sfumato sample MODEL --label",
}
"""The command that supplies a field that a model is conditioned on."""
OPTIONS = {"text": "prompt", "label": "label"}
MOST_LISTED = 40
"""Largest number of class names in an error message."""


@dataclass(frozen=True, eq=False)
class ConditionSource:
    """The parts of a model, of any kind, from which its conditions are made.

    Attributes:
        dropout, part_dropout: dropout rate in training of the condition, and of each part of it.
        classes: names by number, None: unnamed.
        seen: the classes of the training images, None: unknown.
    """

    conditioner: Conditioner | None
    config: ConditionerConfig
    dropout: float
    part_dropout: Mapping[str, float]
    classes: tuple[str, ...] | None
    seen: tuple[int, ...] | None
    device: torch.device

    @property
    def reads(self) -> tuple[str, ...]:
        """The fields that condition the model."""
        return () if self.conditioner is None else self.conditioner.reads


@dataclass(frozen=True)
class ConditionInputs:
    """Prompts, labels and negative prompts, one for each sample; None: none."""

    prompts: Sequence[str] | None = None
    labels: Sequence[int | str] | None = None
    negatives: Sequence[str] | None = None

    def rows(self, rows: slice) -> "ConditionInputs":
        """The inputs of a batch."""
        return ConditionInputs(
            None if self.prompts is None else self.prompts[rows],
            None if self.labels is None else self.labels[rows],
            None if self.negatives is None else self.negatives[rows],
        )


def source_of(model: Model) -> ConditionSource:
    """The condition source of a diffusion model. Raises UserError for an autoencoder alone."""
    second = second_stage(model)
    config = second.config
    return ConditionSource(
        second.conditioner,
        config.conditioner,
        config.condition_dropout,
        config.part_dropout,
        model.config.classes,
        model.config.classes_seen,
        model.device,
    )


@dataclass(frozen=True, eq=False)
class Conditions:
    """The conditions of a batch of samples on a latent (h, w), and the null condition of guidance, in any window of it.

    `conditioned` is False for unconditional samples, on which guidance has no effect. `null` is None where the model
    was not trained unconditionally.
    """

    source: ConditionSource
    count: int
    size: tuple[int, int]
    condition: Condition
    null: Condition | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    conditioned: bool = True

    def of(self, window: Window) -> tuple[Condition, Condition | None]:
        """(condition, null) of a window: spatial fields are cropped, boxes are transformed by the crop; a model with
        crop conditioning receives the window as its crop."""
        if (window.height, window.width) == self.size:
            return self.condition, self.null
        condition = self.condition
        if {"boxes", CROP} & set(self.fields) and self.source.conditioner is not None:
            with torch.no_grad():
                condition = self.source.conditioner(self._fields_of(window))
        return _cropped(condition, window), None if self.null is None else _cropped(self.null, window)

    @torch.no_grad()
    def one_by_one(self, window: Window, parts: Sequence[str]) -> list[Condition]:
        """The conditions of a window without `parts` of a composite conditioner, and with each of them added in
        turn."""
        assert isinstance(self.source.conditioner, Composite)
        fields = self._fields_of(window)
        nested = self.source.conditioner.one_by_one(fields, self.count, self.size, parts)
        return [_cropped(condition, window) for condition in nested]

    @cached_property
    def whole(self) -> Window:
        """The window of the whole latent."""
        return Window(0, 0, *self.size)

    def _fields_of(self, window: Window) -> Mapping[str, Any]:
        """The fields with the window's crop, by which boxes are transformed."""
        h, w = self.size
        if not {"boxes", CROP} & set(self.fields) or (window.height, window.width) == (h, w):
            return self.fields
        crop = (window.left / w, window.top / h, window.width / w, window.height / h)
        seen = {CROP: torch.tensor([crop] * self.count)} if CROP in self.fields else {}
        return {**self.fields, **seen, **({"crop": [crop] * self.count} if "boxes" in self.fields else {})}


@torch.no_grad()
def conditions_for(
    source: ConditionSource,
    count: int,
    size: tuple[int, int],
    inputs: ConditionInputs = ConditionInputs(),
    fields: Mapping[str, Any] | None = None,
    ready: Condition | None = None,
) -> Conditions:
    """The conditions of `count` samples on a latent of `size` (h, w).

    Args:
        source: the model's.
        count: number of samples.
        size: (h, w).
        words: prompts, labels and negative prompts.
        fields: other fields that the conditioner reads, a row for each sample.
        ready: a ready-made condition instead of inputs and fields; negatives still apply.

    Raises:
        UserError: the model is not conditioned on an input, or requires a missing one.
    """
    check_inputs(source, inputs)
    if ready is not None:
        null = None if source.dropout == 0 and inputs.negatives is None else _null(source, count, size, inputs)
        return Conditions(source, count, size, ready, null)
    conditioner = source.conditioner
    if conditioner is None:
        return Conditions(source, count, size, Condition(), None, conditioned=False)
    null = conditioner.null(count, size) if source.dropout > 0 else None
    if null is not None and not has_condition(inputs, fields) and source.reads != (CROP,):
        return Conditions(source, count, size, null, null, conditioned=False)
    whole = complete_fields(source, count, inputs, fields)
    if inputs.negatives is not None:
        null = conditioner({**whole, "text": list(inputs.negatives)})
    return Conditions(source, count, size, conditioner(whole), null, whole)


def take_rows(fields: Mapping[str, Any] | None, rows: slice) -> dict[str, Any] | None:
    """The rows of the fields in a batch."""
    return None if fields is None else {name: value[rows] for name, value in fields.items()}


def rows_of(condition: Condition | None, rows: slice) -> Condition | None:
    """The rows of a ready-made condition in a batch."""
    return None if condition is None else take(condition, rows)


def has_condition(inputs: ConditionInputs, fields: Mapping[str, Any] | None) -> bool:
    """Whether the samples are conditioned on anything."""
    return bool(fields) or any(part is not None for part in (inputs.prompts, inputs.labels, inputs.negatives))


def check_inputs(source: ConditionSource, inputs: ConditionInputs) -> None:
    """Raises UserError for inputs that the model is not conditioned on, and for unknown classes."""
    for prefix, key, value in (
        ("", "text", inputs.prompts),
        ("", "label", inputs.labels),
        ("negative prompt: ", "text", inputs.negatives),
    ):
        if value is not None and key not in source.reads:
            asked = [name for name in source.reads if name != CROP]
            accepted = f"it takes: {', '.join(asked)}" if asked else "it is unconditional"
            raise UserError(f"{prefix}this model was not trained with {key} conditioning; {accepted}")
    for label in dict.fromkeys(inputs.labels or ()):
        class_index(source, label)


def complete_fields(
    source: ConditionSource, count: int, inputs: ConditionInputs, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields that the conditioner reads, with defaults for optional ones. Calls no network.

    Raises UserError for a missing required field.
    """
    supplied = dict(fields or {})
    if inputs.prompts is not None:
        supplied["text"] = list(inputs.prompts)
    if inputs.labels is not None:
        supplied["label"] = torch.tensor([class_index(source, label) for label in inputs.labels], device=source.device)
    missing = [name for name in source.reads if name not in supplied]
    whole = {**supplied, **_left_out(source, count, missing)}
    unmet = next((name for name in missing if name not in whole), None)
    if unmet is not None:
        why = "" if source.dropout > 0 else "; it was trained without condition dropout, so this is required"
        hint = f"give a {OPTIONS[unmet]}{why}" if unmet in OPTIONS else f"use `{COMMANDS.get(unmet, 'sfumato sample')}`"
        raise UserError(f"this model is conditioned on {' and '.join(source.reads)}: {hint}")
    return whole


def class_index(source: ConditionSource, label: int | str) -> int:
    """The number of a class given by number or name. Raises UserError for an unknown one, or one without images."""
    names = source.classes or ()
    part = class_config(source.config)
    index = class_number(label, names, len(names) if part is None else part.classes)
    if source.seen is not None and index not in source.seen:
        known = [names[i] if i < len(names) else str(i) for i in source.seen]
        listed = f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
        raise UserError(f"label {label}: no training image had this class; the model was trained on {listed}")
    return index


def class_number(
    label: int | str, names: Sequence[str], count: int, what: str = "label", owner: str = "this model"
) -> int:
    """The number of one of `count` classes given by number or name.

    A name may list synonyms, separated by commas (as WordNet's in the lists of ImageNet's classes): each is one, too,
    where no class has it as its whole name. Raises UserError for an unknown name, and for one of several classes.
    """
    if isinstance(label, str):
        found = [i for i, name in enumerate(names) if name == label]
        found = found or [i for i, name in enumerate(names) if label in synonyms(name)]
        if len(found) > 1:
            raise UserError(
                f"{what} {label!r} is a name of {len(found)} of {owner}'s classes: give the number, "
                f"{' or '.join(map(str, found[:8]))}"
            )
        if found:
            return found[0]
    if isinstance(label, int) or label.isdecimal():
        if len(str(label)) > 18 or not 0 <= int(label) < count:
            raise UserError(f"{what} {str(label)[:20]} is outside 0 to {count - 1}, the numbers of {owner}'s classes")
        return int(label)
    listed = ", ".join(names[:MOST_LISTED]) or "they have no names, give a number"
    if len(names) > MOST_LISTED:
        listed += f" and {len(names) - MOST_LISTED} more, which `sfumato info --json` lists"
    close = nearest(label, [word for name in names for word in (name, *synonyms(name))])
    raise UserError(f"{what} {label!r} is not one of {owner}'s classes{close}: {listed}")


def synonyms(name: str) -> list[str]:
    """The parts of a class's name that commas separate."""
    return [part.strip() for part in name.split(",")]


def _null(source: ConditionSource, count: int, size: tuple[int, int], inputs: ConditionInputs) -> Condition | None:
    return conditions_for(source, count, size, ConditionInputs(negatives=inputs.negatives)).null


def _left_out(source: ConditionSource, count: int, missing: Sequence[str]) -> dict[str, Any]:
    """Values of missing inputs: the whole image, and null values of those that were dropped in training: the empty
    text, the null class."""
    defaults: dict[str, Any] = {CROP: whole_boxes(count)} if CROP in missing else {}
    if "text" in missing and _was_dropped(source, "text"):
        defaults["text"] = [""] * count
    config = class_config(source.config)
    learned = config.classes if isinstance(config, ClassConfig) and config.null == "learned" else None
    if "label" in missing and learned is not None and _was_dropped(source, "label"):
        defaults["label"] = torch.full((count,), learned, device=source.device)
    return defaults


def _was_dropped(source: ConditionSource, name: str) -> bool:
    """Whether the field was dropped in training, with the whole condition or as a separate part."""
    if source.dropout > 0:
        return True
    if not isinstance(source.conditioner, Composite):
        return False
    parts = [(key, part) for key, part in source.conditioner.parts.items() if isinstance(part, Conditioner)]
    reading = [key for key, part in parts if name in part.reads]
    return bool(reading) and all(source.part_dropout.get(key, 0) > 0 for key in reading)


def _cropped(condition: Condition, window: Window) -> Condition:
    """The condition with its spatial field cropped to the window; unchanged without one."""
    spatial: Tensor | None = condition.spatial
    return condition if spatial is None else replace(condition, spatial=window.of(spatial))
