"""All conditioners to choose from, distinguished by `kind`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sfumato.conditioning.class_label import ClassConfig, ClassEmbedder
from sfumato.conditioning.composite import Composite
from sfumato.conditioning.condition import Conditioner
from sfumato.conditioning.crop import CropConfig, CropEmbedder
from sfumato.conditioning.embeddings import EmbeddingsConfig, TokenIdentity
from sfumato.conditioning.layout import LayoutConfig, LayoutTransformer
from sfumato.conditioning.pretrained import PretrainedTextConfig, load_pretrained_text
from sfumato.conditioning.sources import tokenizer_text
from sfumato.conditioning.spatial import ImageConfig, SemanticConfig, SpatialIdentity, SpatialRescaler
from sfumato.conditioning.text import TextConfig, TextTransformer
from sfumato.schema import Schema


class NoneConfig(Schema):
    """Unconditional."""

    kind: Literal["none"] = "none"


OnePart = (
    ClassConfig
    | TextConfig
    | PretrainedTextConfig
    | SemanticConfig
    | ImageConfig
    | EmbeddingsConfig
    | LayoutConfig
    | CropConfig
)
PartConfig = Annotated[OnePart, Field(discriminator="kind")]


class CompositeConfig(Schema):
    """Several conditioners at once, by name."""

    kind: Literal["composite"] = "composite"
    parts: dict[str, PartConfig] = Field(min_length=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        texts = [name for name, part in self.parts.items() if isinstance(part, TextConfig)]
        if len(texts) > 1:
            raise ValueError(f"at most one part may be of kind text (they would share one tokenizer), not {texts}")
        return self


ConditionerConfig = Annotated[NoneConfig | OnePart | CompositeConfig, Field(discriminator="kind")]


def build_conditioner(config: ConditionerConfig, tokenizer: str | None = None) -> Conditioner | None:
    """The conditioner, or None for kind none.

    Args:
        config: what to build.
        tokenizer: the text of a tokenizer.json for the part of kind text: fitted on the captions (`fit_tokenizer`) or
            stored with the model (`stored_tokenizer`). None: read from the configured source.
    """
    match config:
        case NoneConfig():
            return None
        case CompositeConfig():
            return Composite({name: _build(part, tokenizer) for name, part in config.parts.items()})
        case _:
            return _build(config, tokenizer)


def _build(config: PartConfig, tokenizer: str | None) -> Conditioner:
    match config:
        case ClassConfig():
            return ClassEmbedder(config)
        case TextConfig():
            if tokenizer is None and config.tokenizer not in ("fitted", "none"):
                tokenizer = tokenizer_text(config.tokenizer)
            return TextTransformer(config, tokenizer)
        case PretrainedTextConfig():
            return load_pretrained_text(config)
        case SemanticConfig():
            return SpatialRescaler(config)
        case ImageConfig():
            return SpatialIdentity(config)
        case EmbeddingsConfig():
            return TokenIdentity(config)
        case LayoutConfig():
            return LayoutTransformer(config)
        case CropConfig():
            return CropEmbedder(config)


def text_config(config: ConditionerConfig) -> TextConfig | None:
    """The part of kind text, whose tokenizer may have to be fitted; None if there is none."""
    parts = list(config.parts.values()) if isinstance(config, CompositeConfig) else [config]
    return next((part for part in parts if isinstance(part, TextConfig)), None)


def class_config(config: ConditionerConfig) -> ClassConfig | None:
    """The part of kind class, which fixes the number of classes; None if there is none."""
    parts = list(config.parts.values()) if isinstance(config, CompositeConfig) else [config]
    return next((part for part in parts if isinstance(part, ClassConfig)), None)


def stored_tokenizer(conditioner: Conditioner | None) -> str | None:
    """The tokenizer.json to store beside the weights, for `build_conditioner`; None if there is nothing to store."""
    if conditioner is None:
        return None
    found = (module.tokenizer_json for module in conditioner.modules() if isinstance(module, TextTransformer))
    return next(found, None)
