"""The inputs of a conditioner as tensors of a graph: names, types, shapes, and the values of the null condition."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfumato.conditioning.condition import Conditioner
from sfumato.conditioning.layout import LayoutTransformer
from sfumato.conditioning.pretrained import PretrainedText
from sfumato.conditioning.table import PartConfig
from sfumato.conditioning.text import TextTransformer
from sfumato.errors import UserError
from sfumato.interop.expressible import parts_of
from sfumato.model_config import DiffusionConfig

Axis = int | str
"""A size, or the name of one that varies."""
BATCH = "batch"
MASK = "text_mask"


@dataclass(frozen=True)
class ConditionPort:
    """One tensor that a conditioner takes.

    Attributes:
        name: in the graph.
        field: in the conditioner's fields.
        kind: of the conditioner.
        shape: the first axis is the batch.
        below: integers are 0 .. below - 1; None: the tensor is float32.
        pad: the id after the last token of a text.
        null: the unconditional value, a number for every entry or a list for a row; None if there is none.
    """

    name: str
    field: str
    kind: str
    shape: tuple[Axis, ...]
    below: int | None
    null: float | int | list[int] | None
    pad: int | None = None

    @property
    def dtype(self) -> torch.dtype:
        """int64 for ids, else float32."""
        return torch.float32 if self.below is None else torch.int64

    def example(self, sizes: dict[str, int], random: torch.Generator) -> Tensor:
        """Random values; `sizes` has a number for each named axis."""
        shape = [sizes[axis] if isinstance(axis, str) else axis for axis in self.shape]
        if self.below is None:
            return torch.randn(shape, generator=random)
        values = torch.randint(self.below, shape, generator=random)
        if self.name == MASK:
            values[:, 0] = 1  # every row attends to something
        return values


def condition_ports(config: DiffusionConfig, conditioner: Conditioner) -> tuple[ConditionPort, ...]:
    """The tensors that the graph of a conditioner takes. Raises UserError where two parts need different ones of a
    name."""
    found: dict[str, ConditionPort] = {}
    for part in parts_of(config):
        for port in _ports(part, conditioner):
            if found.setdefault(port.name, port) != port:
                raise UserError(
                    f"two conditions that read {port.field!r} in different ways cannot be exported to ONNX: the graph "
                    "has one input of that name"
                )
    return tuple(found.values())


def _ports(part: PartConfig, conditioner: Conditioner) -> Iterator[ConditionPort]:
    match part.kind:
        case "crop":
            raise UserError(
                "a model conditioned on the crop of the image (conditioner.kind crop) cannot be exported to "
                "ONNX: use the model folder as it is"
            )
        case "class":
            null = part.classes if part.null == "learned" else None
            yield ConditionPort("label", "label", part.kind, (BATCH,), part.classes + (null is not None), null)
        case "text":
            text = _module(conditioner, TextTransformer)
            rows = text.transformer.token_emb.num_embeddings
            null = text.empty_ids()[0].tolist()
            yield ConditionPort(
                "text_ids", "tokens", part.kind, (BATCH, part.max_tokens), rows, null, text.config.pad_token
            )
        case "pretrained-text":
            yield from _pretrained(_module(conditioner, PretrainedText))
        case "layout":
            layout = _module(conditioner, LayoutTransformer)
            shape = (BATCH, part.length)
            null = layout.empty_ids()[0].tolist()
            yield ConditionPort("layout_ids", "layout_tokens", part.kind, shape, part.vocabulary, null)
        case "semantic":
            yield ConditionPort("map", "map", part.kind, (BATCH, "map_height", "map_width"), part.classes, part.classes)
        case "image":
            yield ConditionPort(
                part.field, part.field, part.kind, (BATCH, part.channels, "latent_height", "latent_width"), None, 0.0
            )
        case "embeddings":
            yield ConditionPort(part.field, part.field, part.kind, (BATCH, f"{part.field}_length", part.dim), None, 0.0)


def _pretrained(text: PretrainedText) -> Iterator[ConditionPort]:
    empty = {name: values[0].tolist() for name, values in text.tokenise([""]).items()}
    description: Any = text.encoder.config
    shape, pad = (BATCH, text.config.max_tokens), text.tokenizer.pad_token_id
    yield ConditionPort(
        "text_ids", "input_ids", text.config.kind, shape, description.vocab_size, empty["input_ids"], pad
    )
    if text.config.mask_padding:
        yield ConditionPort(MASK, "attention_mask", text.config.kind, shape, 2, empty["attention_mask"])


def _module(conditioner: Conditioner, kind: type[Any]) -> Any:
    """The part of a kind; of several the first, since they share an input."""
    return next(module for module in conditioner.modules() if isinstance(module, kind))
