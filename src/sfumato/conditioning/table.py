"""All conditioners to choose from, told apart by `kind`."""

from typing import Annotated, Literal

from pydantic import Field

from sfumato.conditioning.class_label import ClassConfig, ClassEmbedder
from sfumato.conditioning.condition import Conditioner
from sfumato.conditioning.text import TextConfig, TextTransformer
from sfumato.schema import Schema


class NoneConfig(Schema):
    """Unconditional."""

    kind: Literal["none"] = "none"


ConditionerConfig = Annotated[NoneConfig | ClassConfig | TextConfig, Field(discriminator="kind")]


def build_conditioner(config: ConditionerConfig, tokenizer: str | None = None) -> Conditioner | None:
    """The conditioner, or None for kind none; `tokenizer` is the text of a tokenizer.json for kind text."""
    match config:
        case NoneConfig():
            return None
        case ClassConfig():
            return ClassEmbedder(config)
        case TextConfig():
            return TextTransformer(config, tokenizer)
