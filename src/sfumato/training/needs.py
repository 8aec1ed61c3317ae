"""What a conditioner reads of the images' own data, and what to type where a folder has none of it."""

from collections.abc import Callable, Iterator

from sfumato.conditioning.class_label import ClassConfig
from sfumato.conditioning.pretrained import PretrainedTextConfig
from sfumato.conditioning.table import CompositeConfig, ConditionerConfig
from sfumato.conditioning.text import TextConfig
from sfumato.errors import UserError
from sfumato.training.data import RunData

Retype = Callable[[str], str]
"""Given a setting such as conditioner.kind=none: the user's command with it, to copy."""


def same_command(setting: str) -> str:
    """For a training that was not begun by a command."""
    return f"the same command with {setting}"


def check_needs(config: ConditionerConfig, data: RunData, retype: Retype = same_command) -> None:
    """Raises UserError, which gives a command to copy, where the conditioner reads captions or labels that are missing.

    Needs neither networks nor latents: it comes before the encoding.
    """
    fields, classes = data.training.fields, data.training.classes
    for field, told in _read(config):
        if field in fields:
            continue
        ways = {"text": "add .txt files beside the images or a metadata.jsonl", "label": "sort them into a folder each"}
        if isinstance(config, CompositeConfig):
            raise UserError(
                f"the images have no {told}, which a part of conditioner.parts reads: {ways[field]}, or leave it out"
            )
        if field == "text" and classes is not None and len(classes) > 1:
            setting, instead = f"conditioner={{kind: class, classes: {len(classes)}}}", f"their {len(classes)} classes"
        else:
            setting, instead = "conditioner.kind=none", "the images alone"
        raise UserError(
            f"the images have no {told}, which conditioner.kind {config.kind} reads: {ways[field]}, or train on "
            f"{instead} by typing: {retype(setting)}"
        )


def _read(config: ConditionerConfig) -> Iterator[tuple[str, str]]:
    """The fields that a conditioner reads of captions and labels, with the user's word for them."""
    for part in config.parts.values() if isinstance(config, CompositeConfig) else [config]:
        if isinstance(part, TextConfig | PretrainedTextConfig):
            yield "text", "captions"
        elif isinstance(part, ClassConfig):
            yield "label", "labels"
