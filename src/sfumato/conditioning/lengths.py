"""Texts that exceed the length that a conditioner reads, and are cut."""

from collections.abc import Sequence
from dataclasses import dataclass

from sfumato.conditioning.condition import Conditioner
from sfumato.conditioning.pretrained import PretrainedText
from sfumato.conditioning.text import TextTransformer


@dataclass(frozen=True)
class CutText:
    """A text of `tokens` tokens, frame included, of which `limit` are read."""

    text: str
    tokens: int
    limit: int


def cut_texts(conditioner: Conditioner | None, texts: Sequence[str]) -> list[CutText]:
    """The texts that a text conditioner, also as a part of a composite one, would cut.

    With several text conditioners the lowest limit counts.
    """
    found: dict[str, CutText] = {}
    for module in [] if conditioner is None else conditioner.modules():
        if isinstance(module, TextTransformer) and module.texts is not None:
            limit, counts = module.config.max_tokens, module.texts.counts(texts)
        elif isinstance(module, PretrainedText):
            limit = module.config.max_tokens
            counts = [len(ids) for ids in module.tokenizer(list(texts), truncation=False)["input_ids"]] if texts else []
        else:
            continue
        for text, tokens in zip(texts, counts, strict=True):
            if tokens > limit and (text not in found or limit < found[text].limit):
                found[text] = CutText(text, tokens, limit)
    return list(found.values())
