"""Captions and labels that a conditioner needs, and what to type if a folder lacks them."""

from collections.abc import Callable, Iterator

from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.pretrained import PretrainedTextConfig
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig
from sfumato.conditioning.text import TextConfig
from sfumato.errors import UserError
from sfumato.training.data import RunData

Retype = Callable[[str], str]
"""Called with a setting such as conditioner.kind=none; returns the user's command with it, to copy."""


def same_command(setting: str) -> str:
    """For a training that was not started by a command."""
    return f"the same command with {setting}"


def check_needs(config: ConditionerConfig, data: RunData, retype: Retype = same_command) -> None:
    """Raises UserError, with a command to copy, if the conditioner reads captions or labels that are missing.

    Needs neither networks nor latents, so it runs before the encoding.
    """
    fields, classes = data.training.fields, data.training.classes
    for field, name in _read(config):
        if field in fields:
            continue
        fixes = {
            "text": "add .txt files beside the images or a metadata.jsonl",
            "label": "sort them into a folder each",
        }
        if isinstance(config, CompositeConfig):
            raise UserError(
                f"the images have no {name}, which a part of conditioner.parts reads: {fixes[field]}, or leave it out"
            )
        if field == "text" and classes is not None and len(classes) > 1:
            setting, instead = f"conditioner={{kind: class, classes: {len(classes)}}}", f"their {len(classes)} classes"
        else:
            setting, instead = "conditioner.kind=none", "the images alone"
        raise UserError(
            f"the images have no {name}, which conditioner.kind {config.kind} reads: {fixes[field]}, or train on "
            f"{instead} by typing: {retype(setting)}"
        )


def _read(config: ConditionerConfig) -> Iterator[tuple[str, str]]:
    """The fields that a conditioner reads of captions and labels, with their names in messages."""
    for part in config.parts.values() if isinstance(config, CompositeConfig) else [config]:
        if isinstance(part, TextConfig | PretrainedTextConfig):
            yield "text", "captions"
        elif isinstance(part, ClassConfig):
            yield "label", "labels"
