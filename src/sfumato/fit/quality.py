"""What to expect of a training, in sentences: by the number of images that both stages see.

The limits are those of the runs in docs/results: the emoji's first stage reaches 25 dB after 2,400 images and 31 dB
after 6,000; a second stage generates flags after 27,000 latents, common objects after some hundred thousand, and most
after a million.
"""

FIRST_LIMITS = (
    (3_000, "reconstructions are blurred: shapes and colours, no details"),
    (15_000, "reconstructions are good, fine texture is smeared"),
)
SECOND_LIMITS = (
    (20_000, "samples show typical colours and where things are, hardly an object"),
    (80_000, "samples show simple shapes and the most frequent objects"),
    (400_000, "common objects are recognisable, rare ones are not"),
)


def first_sentences(images: int, size: int, factor: int) -> list[str]:
    """Why stage 1 is as good as it is."""
    expected = _by(FIRST_LIMITS, images, "reconstructions are close to the images")
    return [
        f"Stage 1 sees {images:,} images and compresses {size}x{size} pixels to {size // factor}x{size // factor}: "
        f"{expected}."
    ]


def second_sentences(images: int, distinct: int) -> list[str]:
    """Why stage 2 is as good as it is."""
    epochs = images / max(1, distinct)
    often = f"each of {distinct:,} about {epochs:,.0f} times" if epochs >= 1.5 else f"of {distinct:,} different ones"
    return [f"Stage 2 sees {images:,} latents, {often}."]


def quality(first_images: int, second_images: int, distinct: int, files: int, conditioner: str) -> str:
    """What to expect of the samples; `distinct` counts mirrored images, `files` does not."""
    if distinct < 1_000:
        variety = f"; with {files:,} training images they are near copies or mixtures of these"
        # few images are learnt soon: what counts is how often each was seen
        second_images = max(second_images, int(400_000 * min(1.0, second_images / distinct / 400)))
    else:
        variety = ""
    expected = _by(SECOND_LIMITS, second_images, "most objects are recognisable")
    blurred = ", blurred" if first_images < FIRST_LIMITS[0][0] else ""
    prompts = " Prompts of several objects need more time." if conditioner == "text" and second_images < 400_000 else ""
    return f"Expect: {expected}{blurred}{variety}.{prompts}"


def _by(limits: tuple[tuple[int, str], ...], images: int, beyond: str) -> str:
    return next((text for limit, text in limits if images < limit), beyond)
