"""The images that the page shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from sfumato.data.toyworld.facts import Score
from sfumato.report.measure import DenoisingStrip, PromptSet, fact_scores


@dataclass(frozen=True)
class Sampled:
    """One image (3, H, W) and its score by the toy world's reader."""

    image: Tensor
    score: Score


@dataclass(frozen=True)
class PromptShown:
    """A prompt, its real scene, and a sample from the same seed for each guidance scale."""

    caption: str
    real: Sampled
    samples: tuple[Sampled, ...]


@dataclass(frozen=True)
class Gallery:
    """Images are (3, H, W) in [-1, 1]; batches have a leading axis."""

    originals: Tensor
    reconstructions: Tensor
    latent_maps: Tensor
    """uint8 (C, 3, h, w): the channels of the first original."""
    guidance: tuple[float, ...]
    prompts: tuple[PromptShown, ...]
    sheet: Tensor
    """Further images at the default guidance."""
    sheet_captions: tuple[str, ...]
    strip: DenoisingStrip


def prompts_shown(prompt_set: PromptSet, samples: Sequence[Tensor], count: int) -> tuple[PromptShown, ...]:
    """The first `count` prompts with their real scenes and with their images in each batch of `samples`."""
    first = prompt_set.first(count)
    columns = [
        [*zip(images, fact_scores(first.prompts, images), strict=True)] for images in (d[:count] for d in samples)
    ]
    real = fact_scores(first.prompts, first.images)
    return tuple(
        PromptShown(
            caption=prompt.caption,
            real=Sampled(first.images[i], real[i]),
            samples=tuple(Sampled(*column[i]) for column in columns),
        )
        for i, prompt in enumerate(first.prompts)
    )
