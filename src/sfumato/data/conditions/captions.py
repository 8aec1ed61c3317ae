"""Images with several captions: training samples one at each reading, deterministically; others use the first."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from sfumato.data.captions import Captioned, Choices, all_texts, chosen_caption
from sfumato.data.dataset import (
    Blocks,
    Buckets,
    Dataset,
    LatentExample,
    LatentSource,
    blocks_of,
    buckets_of,
    example_or_variant,
)


class SampledCaptions:
    """Cached latents whose `text` is sampled by weight in `variant`, a function of (index, seed) like the variant.

    An image is cached once, however many captions it has: they are not part of the cache.
    """

    def __init__(self, latents: LatentSource, choices: Sequence[Choices]) -> None:
        """`choices` are the captions of each row of the latents."""
        self.latents, self.choices = latents, tuple(choices)

    @property
    def fields(self) -> tuple[str, ...]:
        return self.latents.fields

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.latents.classes

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> LatentExample:
        return self.latents[index]

    def variant(self, index: int, seed: int) -> LatentExample:
        example = example_or_variant(self.latents, index, seed)
        return replace(example, fields={**example.fields, "text": chosen_caption(self.choices[index], seed)})

    def captions(self) -> list[str] | None:
        return self.latents.captions()

    def blocks(self) -> Blocks | None:
        return blocks_of(self.latents)

    def buckets(self) -> Buckets | None:
        return buckets_of(self.latents)

    def fingerprint(self) -> str:
        content = repr((self.latents.fingerprint(), self.choices)).encode(errors="surrogateescape")
        return blake2b(content, digest_size=16).hexdigest()


def with_sampled_captions(latents: LatentSource, images: Dataset) -> LatentSource:
    """The latents of `images`, row by row, with sampled captions if some image has several; else unchanged."""
    choices = choices_of(images)
    if choices is None or all(len(each) < 2 for each in choices):
        return latents
    return SampledCaptions(latents, choices)


def choices_of(images: Dataset) -> Sequence[Choices] | None:
    """All captions of each image; None without text, or if the set has a single one for each."""
    return images.caption_choices() if isinstance(images, Captioned) else None


def texts_of(images: Dataset) -> list[str] | None:
    """Every caption that training may read, for tokenizers and counts; None without text."""
    choices = choices_of(images)
    return images.captions() if choices is None else all_texts(choices)
