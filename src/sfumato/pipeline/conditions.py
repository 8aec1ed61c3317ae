"""Conditions: the one place where prompts, labels, maps, boxes and images become what a network is conditioned on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Condition, Conditioner, take
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
"""The command that gives a model the field it is conditioned on."""
OPTIONS = {"text": "prompt", "label": "label"}


@dataclass(frozen=True, eq=False)
class ConditionSource:
    """What a model's conditions are made from, whatever kind of model it is.

    Attributes:
        dropout, part_dropout: how often the condition, and each part of it, was dropped in training.
        classes: names by number, None: they have none.
        seen: the classes that training images had, None: not known.
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
class Words:
    """What is given in words or numbers, a row for each sample; None: not given."""

    prompts: Sequence[str] | None = None
    labels: Sequence[int | str] | None = None
    negatives: Sequence[str] | None = None

    def rows(self, rows: slice) -> "Words":
        """Those of a batch."""
        return Words(
            None if self.prompts is None else self.prompts[rows],
            None if self.labels is None else self.labels[rows],
            None if self.negatives is None else self.negatives[rows],
        )


def source_of(model: Model) -> ConditionSource:
    """Of a diffusion model. Raises UserError for an autoencoder alone."""
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
    """The conditions of a batch of samples on a latent (h, w), and what guidance moves away from, in any window of it.

    `given` is False where nothing conditions the samples, so that guidance has nowhere to lead. `null` is None where
    the model does not know the unconditional case.
    """

    source: ConditionSource
    count: int
    size: tuple[int, int]
    condition: Condition
    null: Condition | None
    fields: Mapping[str, Any] = field(default_factory=dict)
    given: bool = True

    def of(self, window: Window) -> tuple[Condition, Condition | None]:
        """In a window: spatial fields are cut, boxes are seen through their crop; else the condition of the whole."""
        if (window.height, window.width) == self.size:
            return self.condition, self.null
        condition = self.condition
        if "boxes" in self.fields and self.source.conditioner is not None:
            with torch.no_grad():
                condition = self.source.conditioner(self._fields_of(window))
        return _cut(condition, window), None if self.null is None else _cut(self.null, window)

    @torch.no_grad()
    def one_by_one(self, window: Window, parts: Sequence[str]) -> list[Condition]:
        """The conditions of a window without some parts of a composite conditioner, and with each of them added."""
        assert isinstance(self.source.conditioner, Composite)
        fields = self._fields_of(window)
        made = self.source.conditioner.one_by_one(fields, self.count, self.size, parts)
        return [_cut(condition, window) for condition in made]

    @cached_property
    def whole(self) -> Window:
        """The window that is the whole latent."""
        return Window(0, 0, *self.size)

    def _fields_of(self, window: Window) -> Mapping[str, Any]:
        """With the window's place, through which boxes are seen."""
        h, w = self.size
        if "boxes" not in self.fields or (window.height, window.width) == (h, w):
            return self.fields
        crop = (window.left / w, window.top / h, window.width / w, window.height / h)
        return {**self.fields, "crop": [crop] * self.count}


@torch.no_grad()
def conditions_for(
    source: ConditionSource,
    count: int,
    size: tuple[int, int],
    words: Words = Words(),
    fields: Mapping[str, Any] | None = None,
    ready: Condition | None = None,
) -> Conditions:
    """The conditions of `count` samples on a latent of `size` (h, w).

    Args:
        source: of the model.
        count: of samples.
        size: (h, w).
        words: prompts, labels and negative prompts.
        fields: what else the conditioner reads, a row for each sample.
        ready: a ready-made condition instead of words and fields; negatives still count.

    Raises:
        UserError: the model is not conditioned on what is given, or needs what is not.
    """
    check_words(source, words)
    if ready is not None:
        null = None if source.dropout == 0 and words.negatives is None else _null(source, count, size, words)
        return Conditions(source, count, size, ready, null)
    conditioner = source.conditioner
    if conditioner is None:
        return Conditions(source, count, size, Condition(), None, given=False)
    null = conditioner.null(count, size) if source.dropout > 0 else None
    if null is not None and not is_given(words, fields):
        return Conditions(source, count, size, null, null, given=False)
    whole = complete_fields(source, count, words, fields)
    if words.negatives is not None:
        null = conditioner({**whole, "text": list(words.negatives)})
    return Conditions(source, count, size, conditioner(whole), null, whole)


def take_rows(fields: Mapping[str, Any] | None, rows: slice) -> dict[str, Any] | None:
    """The fields of a batch."""
    return None if fields is None else {name: value[rows] for name, value in fields.items()}


def rows_of(condition: Condition | None, rows: slice) -> Condition | None:
    """A ready-made condition of a batch."""
    return None if condition is None else take(condition, rows)


def is_given(words: Words, fields: Mapping[str, Any] | None) -> bool:
    """Whether anything is given that conditions samples."""
    return bool(fields) or any(part is not None for part in (words.prompts, words.labels, words.negatives))


def check_words(source: ConditionSource, words: Words) -> None:
    """Raises UserError for words that the model does not take, and for classes it does not know."""
    for name, key, value in (
        ("text", "text", words.prompts),
        ("label", "label", words.labels),
        ("negative prompt", "text", words.negatives),
    ):
        if value is not None and key not in source.reads:
            reads = source.reads
            takes = f"it is conditioned on {' and '.join(reads)}" if reads else "it was trained without any condition"
            raise UserError(f"this model takes no {name}: {takes}")
    for label in dict.fromkeys(words.labels or ()):
        class_index(source, label)


def complete_fields(
    source: ConditionSource, count: int, words: Words, fields: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The fields that the conditioner reads, those that may be left out filled in. Calls no network.

    Raises UserError for a field that the model needs.
    """
    given = dict(fields or {})
    if words.prompts is not None:
        given["text"] = list(words.prompts)
    if words.labels is not None:
        given["label"] = torch.tensor([class_index(source, label) for label in words.labels], device=source.device)
    missing = [name for name in source.reads if name not in given]
    whole = {**given, **_left_out(source, count, missing)}
    unmet = next((name for name in missing if name not in whole), None)
    if unmet is not None:
        why = "" if source.dropout > 0 else "; trained without condition dropout, it cannot do without"
        way = f"give a {OPTIONS[unmet]}{why}" if unmet in OPTIONS else f"use `{COMMANDS.get(unmet, 'sfumato sample')}`"
        raise UserError(f"this model is conditioned on {' and '.join(source.reads)}: {way}")
    return whole


def class_index(source: ConditionSource, label: int | str) -> int:
    """The number of a class given by number or name. Raises UserError for an unknown one, or one without images."""
    names = source.classes or ()
    part = class_config(source.config)
    index = class_number(label, names, len(names) if part is None else part.classes)
    if source.seen is not None and index not in source.seen:
        known = [names[i] if i < len(names) else str(i) for i in source.seen]
        listed = f"{', '.join(known[:12])}{', ...' if len(known) > 12 else ''}"
        raise UserError(f"label {label}: no training image had this class; the model has learnt {listed}")
    return index


def class_number(
    label: int | str, names: Sequence[str], count: int, what: str = "label", owner: str = "this model"
) -> int:
    """The number of one of `count` classes given by number or name. Raises UserError for an unknown one."""
    if isinstance(label, str) and label in names:
        return list(names).index(label)
    if isinstance(label, int) or label.isdecimal():
        if len(str(label)) > 18 or not 0 <= int(label) < count:
            raise UserError(f"{what} {str(label)[:20]} is outside 0 to {count - 1}, the numbers of {owner}'s classes")
        return int(label)
    raise UserError(
        f"{what} {label!r} is not one of {owner}'s classes{nearest(label, names)}: "
        f"{', '.join(names) or 'they have no names, give a number'}"
    )


def _null(source: ConditionSource, count: int, size: tuple[int, int], words: Words) -> Condition | None:
    return conditions_for(source, count, size, Words(negatives=words.negatives)).null


def _left_out(source: ConditionSource, count: int, missing: Sequence[str]) -> dict[str, Any]:
    """What stands for words that are not given, where the model knows the case without: the empty text, no class."""
    made: dict[str, Any] = {}
    if "text" in missing and _knows_without(source, "text"):
        made["text"] = [""] * count
    config = class_config(source.config)
    learned = config.classes if isinstance(config, ClassConfig) and config.null == "learned" else None
    if "label" in missing and learned is not None and _knows_without(source, "label"):
        made["label"] = torch.full((count,), learned, device=source.device)
    return made


def _knows_without(source: ConditionSource, name: str) -> bool:
    """Whether the field was dropped in training, with everything or as a part of its own."""
    if source.dropout > 0:
        return True
    if not isinstance(source.conditioner, Composite):
        return False
    parts = [(key, part) for key, part in source.conditioner.parts.items() if isinstance(part, Conditioner)]
    reading = [key for key, part in parts if name in part.reads]
    return bool(reading) and all(source.part_dropout.get(key, 0) > 0 for key in reading)


def _cut(condition: Condition, window: Window) -> Condition:
    """The condition itself where it has no spatial field."""
    spatial: Tensor | None = condition.spatial
    return condition if spatial is None else replace(condition, spatial=window.of(spatial))
