"""Images with several captions: training samples one at each reading, deterministically; others use the first."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Generic

from sfumato.data.captions import Captioned, Choices, all_texts, chosen_caption
from sfumato.data.dataset import (
    Blocks,
    Buckets,
    Dataset,
    Item,
    Source,
    blocks_of,
    buckets_of,
    example_or_variant,
)


class SampledCaptions(Generic[Item]):
    """Images or cached latents whose `text` is sampled by weight in `variant`, a function of (index, seed) like the
    variant.

    An image is cached once, however many captions it has: they are not part of the cache.
    """

    def __init__(self, source: Source[Item], choices: Sequence[Choices]) -> None:
        """`choices` are the captions of each row of the source."""
        self.source, self.choices = source, tuple(choices)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.source.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Item:
        return self.source[index]

    def variant(self, index: int, seed: int) -> Item:
        example = example_or_variant(self.source, index, seed)
        return replace(example, fields={**example.fields, "text": chosen_caption(self.choices[index], seed)})

    def captions(self) -> list[str] | None:
        return self.source.captions()

    def blocks(self) -> Blocks | None:
        return blocks_of(self.source)

    def buckets(self) -> Buckets | None:
        return buckets_of(self.source)

    def fingerprint(self) -> str:
        content = repr((self.source.fingerprint(), self.choices)).encode(errors="surrogateescape")
        return blake2b(content, digest_size=16).hexdigest()


def with_sampled_captions(source: Source[Item], images: Dataset) -> Source[Item]:
    """The images themselves, or their latents row by row, with sampled captions if some image has several; else
    unchanged."""
    choices = choices_of(images)
    if choices is None or all(len(each) < 2 for each in choices):
        return source
    return SampledCaptions(source, choices)


def choices_of(images: Dataset) -> Sequence[Choices] | None:
    """All captions of each image; None without text, or if the set has a single one for each."""
    return images.caption_choices() if isinstance(images, Captioned) else None


def texts_of(images: Dataset) -> list[str] | None:
    """Every caption that training may read, for tokenizers and counts; None without text."""
    choices = choices_of(images)
    return images.captions() if choices is None else all_texts(choices)
