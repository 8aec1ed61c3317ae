"""The expected quality of a training, in sentences: by the number of images that both stages see, and how many differ.

The limits come from recorded runs at 32 and 64 pixels, most of them on drawings (docs/results/emoji.md, docs/fit.md):

- Stage 1, PSNR of held-out images: 21.4 dB after 1,032 images (forty photographs); 21.7 after 800, 25.3 after 2,400,
  29.1 after 4,000 and 30.8 after 5,560 (emoji at 64 pixels); 28.9 after 36,088 (emoji at 32 pixels). With 36 training
  images 18.6 dB, while the training images themselves were sharp. With `loss.spectral`, emoji at 32 pixels: 24.3 dB
  after 12,624 images, 26.7 after 36,088.
- Stage 2 on 7,400 emoji at 32 pixels: common objects and no copies after 137,792 latents, which are 19 passes over the
  images, most objects after 554,304. At 64 pixels: flags after 27,400, hearts, faces and coloured shapes after 92,480,
  most objects after 1,069,000 (145 passes), with a larger network.
- Stage 2 on few images: 36 photographs and their mirror images after 6,400 latents, 89 passes: blurred mixtures, no
  copies. 36 emoji after three minutes on two cores with bfloat16, a number of passes that is not recorded: sharp,
  21.9 % of the samples copies.

That copies begin after a number of passes, however many images there are, is the result of Bonnaire et al. 2025
(arXiv:2505.17638): the time until a model memorises grows in proportion to their number. `COPIES_FROM` lies between the
passes above; it is no measured threshold.
"""

from sfumato.counts import how_many

SHORT_FIRST = 800
"""Images below which no stage 1 was recorded."""
BLURRED_FIRST = 3_000
FIRST_LIMITS = (
    (SHORT_FIRST, "reconstructions show colours and rough shapes"),
    (BLURRED_FIRST, "reconstructions are blurred, usually 21 to 25 dB: shapes and colours, no details"),
    (15_000, "reconstructions are good, usually 25 to 31 dB; fine texture is smeared"),
)
FIRST_BEYOND = "reconstructions are close to the images"
SPECTRAL_LIMITS = (
    (SHORT_FIRST, "reconstructions show colours and rough shapes"),
    (BLURRED_FIRST, "reconstructions are blurred, usually 20 to 23 dB: shapes and colours, no details"),
    (15_000, "reconstructions keep shapes and colours, usually 22 to 25 dB; details are smeared"),
)
SPECTRAL_BEYOND = "reconstructions keep shapes and colours, usually 25 to 29 dB; fine details are smeared"
SPECTRAL_COSTS = (
    "A part of its steps leaves out high frequencies (loss.spectral): in a short training samples are better for it, "
    "reconstructions less sharp."
)
SECOND_LIMITS = (
    (20_000, "samples show typical colours and a rough layout, hardly any objects"),
    (80_000, "samples show simple shapes and the most frequent objects"),
    (400_000, "common objects are recognisable, rare ones are not"),
)
SECOND_BEYOND = "most objects are recognisable"
LARGER_FROM, LARGER = 64, 2.5
"""From this many pixels on, stage 2 needs this many times the latents for the same: a guess between the runs above."""
FEW = 1_000
"""Different images, mirrored ones counted: with fewer, samples are mixtures or copies of them."""
MIXTURES_FROM = 20
"""Passes over few images from which samples are mixtures of them; before, not even that."""
COPIES_FROM = 150
"""Passes over the images from which samples may be copies."""


def first_sentence(images: int, size: int, factor: int, distinct: int, spectral: bool = False) -> str:
    """Why stage 1 is as good as it is; `distinct` images differ, mirrored ones counted; `spectral`: with its loss."""
    expected = _by(SPECTRAL_LIMITS, images, SPECTRAL_BEYOND) if spectral else _by(FIRST_LIMITS, images, FIRST_BEYOND)
    new = " New images are reconstructed worse than the training images." if distinct < FEW else ""
    return (
        f"Stage 1 sees {images:,} images and compresses {size}x{size} pixels to {size // factor}x{size // factor}: "
        f"{expected}.{new}" + (f" {SPECTRAL_COSTS}" if spectral else "")
    )


def second_sentence(images: int, distinct: int) -> str:
    """Why stage 2 is as good as it is."""
    passes = images / max(1, distinct)
    often = f"each of {distinct:,} about {passes:,.0f} times" if passes >= 1.5 else f"of {distinct:,} different ones"
    return f"Stage 2 sees {images:,} latents, {often}."


def quality(first_images: int, second_images: int, distinct: int, files: int, conditioner: str, size: int = 32) -> str:
    """The expected quality of the samples at `size` pixels; `distinct` counts mirrored images, `files` does not."""
    passes = second_images / max(1, distinct)
    blurred = first_images < BLURRED_FIRST
    if distinct < FEW and passes >= MIXTURES_FROM:
        return f"Expect: {_of_few(passes, second_images, blurred, files)}."
    alike = int(second_images / (LARGER if size >= LARGER_FROM else 1))  # latents at 32 pixels that show as much
    expected = _by(SECOND_LIMITS, alike, SECOND_BEYOND) + (", blurred" if blurred else "")
    copies = f"; some may be copies, as each image is seen {passes:,.0f} times" if passes >= COPIES_FROM else ""
    several = conditioner == "text" and alike < SECOND_LIMITS[-1][0]
    prompts = " Prompts with several objects need more time." if several else ""
    return f"Expect: {expected}{copies}.{prompts}"


def advice_for_few(distinct: int, files: int) -> str | None:
    """Advice if there are too few images; None if there are enough."""
    if distinct >= FEW:
        return None
    return (
        f"{how_many(files, 'training image is', 'training images are')} few: samples are mixtures of "
        "them at first, and copies after longer training. Use a thousand or more images of the same kind, or first "
        "train a model on many similar images and continue with these: sfumato train diffusion ... --start MODEL."
    )


def _of_few(passes: float, second_images: int, blurred: bool, files: int) -> str:
    """The expected samples of few images, after that many passes over them."""
    of = f"of the {how_many(files, 'training image')}"
    if passes >= COPIES_FROM:
        return f"samples are near copies and mixtures {of}" + (", blurred" if blurred else "")
    early = blurred or second_images < SECOND_LIMITS[1][0]
    return f"samples are {'blurred ' if early else ''}mixtures {of}, hardly any copies yet"


def _by(limits: tuple[tuple[int, str], ...], images: int, beyond: str) -> str:
    return next((text for limit, text in limits if images < limit), beyond)
