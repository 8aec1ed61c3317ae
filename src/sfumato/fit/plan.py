"""The plan of a fit: sizes, networks, times and memory from the data, the machine's measured pace and the time.

`make_plan` is a pure function: the same facts give the same plan.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sfumato.errors import UserError
from sfumato.fit.condition import conditioner_of, unused, why_conditioned
from sfumato.fit.facts import ConditionerKind, DataFacts, MachineFacts
from sfumato.fit.networks import FIRST, SECOND, FirstNetwork, SecondNetwork
from sfumato.fit.quality import advice_for_few, first_sentence, quality, second_sentence

SIZES = (16, 32, 64, 128, 256)
"""Sides of training images; a folder's images are enlarged by a third at most."""
ENLARGED = 4 / 3
FACTORS = {16: 2, 32: 4, 64: 4, 128: 8, 256: 8}
CHANNELS = {2: 3, 4: 4, 8: 8, 16: 16}
"""Latent channels by f."""
FEW = 8
"""With fewer images none is held out."""
MANY = 2_000
"""From this many images on, mirrored ones bring nothing."""
FIRST_SHARE = 0.25
"""Of the training time, for stage 1."""
SUSTAINED = 1.15
"""A step of a whole training over a timed one: previews, saving, a warmer machine."""
SETUP = 12.0
"""Seconds of imports, scanning, measuring and opening."""
READINGS = 2.5
"""Readings of each file: hashing, decoding into the cache, looking for duplicates."""
CALL_SHARE = 0.22
"""A network call without gradients, of a training step's time per image."""
PREPARING_SHARE = 0.2
"""Of the whole time, for reading and encoding images at most; beyond it, fewer images are used."""
PAGE_SHARE = 0.07
"""Of the whole time, for the samples of the page at most."""
CALLS = 40
"""Network calls of a guided sample."""
SAMPLES = (256, 128, 64, 32, 16)
ENOUGH = {64: (6_000, 200_000), 128: (20_000, 400_000), 256: (60_000, 1_500_000)}
"""Images that stage 1 and stage 2 should see, by the size of the images: before, a smaller size shows more.

At 64 pixels emoji were hardly recognisable after 92,480 latents, while 137,792 at 32 pixels, for about as
many operations, showed common objects (docs/results/emoji.md)."""
EPOCHS = 1_500
"""Of stage 2 at most: a longer training only memorises."""
LEAST_STEPS = 60
"""Of each stage; fewer teach nothing."""
DISCRIMINATOR_FROM = 60_000
"""Images in stage 1 from which the last third has an adversarial loss."""
MEMORY_SHARE = 0.6
"""Of the free memory, for activations, weights and optimiser."""
PROCESS = 900 * 2**20
"""Bytes of the interpreter and its libraries."""
COPIES = 20
"""Bytes per parameter: weights, gradients, moments, averages."""
CROPPED = 0.2
"""Share of an image that squares cut off from which on buckets are mentioned."""
SPECTRAL_BELOW = 80_000
"""Latents that stage 2 sees below which stage 1 trains without high frequencies in half of its steps: samples of emoji
were clearly better for it after 36,480, and hardly after 137,792 (docs/results/latents.md)."""
PERCEPTUAL_FROM = 64
PERCEPTUAL_SECONDS = 90.0


@dataclass(frozen=True)
class StagePlan:
    """One of the two trainings.

    Attributes:
        network: name of the network, see `networks`.
        key: of the measurement that it needs, in `MachineFacts`.
        batch: images in a micro-batch, `accumulate` of which make a step.
        steps: optimiser steps.
        image_seconds: of training on one image.
        parameters: approximate before the network was measured.
        memory: bytes, at the peak.
    """

    network: str
    key: str
    batch: int
    accumulate: int
    steps: int
    image_seconds: float
    parameters: int
    memory: int

    @property
    def images(self) -> int:
        """Images that the training sees, repetitions included."""
        return self.steps * self.batch * self.accumulate

    @property
    def seconds(self) -> float:
        """Of the training."""
        return self.images * self.image_seconds


@dataclass(frozen=True)
class FitPlan:
    """The plan of `sfumato fit`.

    Attributes:
        data, machine: what the plan was made from.
        seconds: that were asked for.
        size, factor, latent_channels: side of the images, f, channels of the latent.
        images: of the folder that are used.
        held_out: of them, kept from training.
        held_out_by: "text" where all images of a caption are on one side.
        conditioner: what the model is conditioned on.
        mirrored: whether mirrored images are trained on as well.
        perceptual, adversarial: terms of the loss of stage 1.
        spectral: whether half of its steps leave out high frequencies; plans stored before this existed do not.
        preparing, encoding, page: seconds of reading the images, of encoding them, and of the evaluation.
        samples: images that the evaluation generates.
        quality: what to expect, in one sentence.
        reasons: why the plan is as it is, in sentences.
        warnings: what the user should know or change, in sentences.
    """

    data: DataFacts
    machine: MachineFacts
    seconds: float
    size: int
    factor: int
    latent_channels: int
    images: int
    held_out: int
    held_out_by: str | None
    conditioner: ConditionerKind
    mirrored: bool
    perceptual: bool
    adversarial: bool
    first: StagePlan
    second: StagePlan
    preparing: float
    encoding: float
    page: float
    samples: int
    spectral: bool = False
    quality: str = ""
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def latent_side(self) -> int:
        """Height and width of the latent."""
        return self.size // self.factor

    @property
    def trained(self) -> int:
        """Different images of the training, mirrored ones counted."""
        return (self.images - self.held_out) * (2 if self.mirrored else 1)

    @property
    def total(self) -> float:
        """Seconds of everything."""
        return self.preparing + self.first.seconds + self.encoding + self.second.seconds + self.page

    @property
    def memory(self) -> int:
        """Bytes at the peak."""
        return max(self.first.memory, self.second.memory)


def make_plan(data: DataFacts, machine: MachineFacts, seconds: float, size: int | None = None) -> FitPlan:
    """The plan for a folder on a machine in a time.

    Args:
        data: the folder.
        machine: at least one network of each stage has been measured on it.
        seconds: for everything, above 0.
        size: the side of the images, where the user has set it.

    Raises UserError if there are fewer than two images, the time is too short for any network, or the memory too small.
    """
    if data.images < 2:
        raise UserError(f"the folder has {_count(data.images, 'image')} that can be read: a model needs at least two")
    sizes = [size] if size is not None else sizes_for(data.side)
    largest: int | None = None
    for side in reversed(sizes):
        plan, fits = _at(side, data, machine, seconds)
        if not fits:
            largest = largest or side
        if fits and (_enough(plan) or side == sizes[0]):
            break
    if not fits:
        raise UserError(
            f"training on images of {plan.size} pixels needs {gib(plan.memory)}, and a plan takes at most "
            f"{MEMORY_SHARE:.0%} of the {gib(machine.memory)} that are free: close other programs"
            + ("" if plan.size == SIZES[0] or size is None else f", or omit data.size={size}")
        )
    _check_time(plan)
    return _explained(plan, sizes, largest)


def sizes_for(side: int) -> list[int]:
    """The sides to choose among for images of this shorter side: none is enlarged by more than a third.

    Only images that are smaller than 32 pixels themselves are trained at 16.
    """
    possible = [size for size in SIZES if size <= ENLARGED * side] or [SIZES[0]]
    return possible[1:] or possible


# ---- sizes and times


def _at(size: int, data: DataFacts, machine: MachineFacts, seconds: float) -> tuple[FitPlan, bool]:
    """The plan for one image size, and whether it fits the memory."""
    factor = FACTORS.get(size, 4 if size < 128 else 8)
    kind = conditioner_of(data)
    mirrored = data.sided is None and data.images < MANY and kind not in ("semantic", "layout")
    copies = 2 if mirrored else 1
    perceptual = machine.features and size >= PERCEPTUAL_FROM and FIRST_SHARE * seconds >= PERCEPTUAL_SECONDS
    encoding_each = 0.5 * CALL_SHARE * _first_seconds(FIRST[0], size, factor, _first_batch(machine), False, machine)
    each = READINGS * machine.read_seconds + copies * encoding_each
    images = min(data.total, max(MANY, int(PREPARING_SHARE * seconds / each)))
    held_out = _held_out(images)
    preparing = SETUP + images * READINGS * machine.read_seconds
    encoding = images * copies * encoding_each
    distinct = (images - held_out) * copies
    left = max(0.0, seconds - preparing - encoding)
    first, first_fits = _first_stage(size, factor, distinct, FIRST_SHARE * left, perceptual, machine)
    left -= first.seconds
    second, second_fits = _second_stage(size // factor, kind, distinct, (1 - PAGE_SHARE) * left, machine)
    samples, page = _page(second, seconds)
    plan = FitPlan(
        data=data,
        machine=machine,
        seconds=seconds,
        size=size,
        factor=factor,
        latent_channels=CHANNELS[factor],
        images=images,
        held_out=held_out,
        held_out_by="text" if kind == "text" and data.captions >= 50 else None,
        conditioner=kind,
        mirrored=mirrored,
        perceptual=perceptual,
        adversarial=first.images >= DISCRIMINATOR_FROM and perceptual,
        first=first,
        second=second,
        preparing=preparing,
        encoding=encoding,
        page=page,
        samples=samples,
        spectral=second.images < SPECTRAL_BELOW,
    )
    return plan, first_fits and second_fits


def _first_stage(
    size: int, factor: int, distinct: int, seconds: float, perceptual: bool, machine: MachineFacts
) -> tuple[StagePlan, bool]:
    """The largest autoencoder that sees enough images in the time and fits the memory; the smallest where none does."""
    stage = None
    for network in reversed(FIRST):
        batch = min(_first_batch(machine), _power(distinct))
        pace = SUSTAINED * _first_seconds(network, size, factor, batch, perceptual, machine)
        parameters = _parameters(machine, "first", key_of_first(network, size, factor, batch, perceptual))
        parameters = parameters or network.parameters(factor)
        batch, accumulate, memory = _in_memory(
            batch, COPIES * parameters, network.activations(size, factor) * (1.6 if perceptual else 1), machine
        )
        images = min(seconds / pace, max(5_000, EPOCHS * distinct), 15 * max(network.images, 4_000))
        key = key_of_first(network, size, factor, batch * accumulate, perceptual)
        steps = max(1, int(images / (batch * accumulate)))
        stage = StagePlan(network.name, key, batch, accumulate, steps, pace, parameters, memory)
        fits = memory <= MEMORY_SHARE * machine.memory
        if fits and seconds / pace >= network.images and distinct >= network.distinct:
            return stage, True
    assert stage is not None
    return stage, stage.memory <= MEMORY_SHARE * machine.memory


def _second_stage(
    side: int, kind: ConditionerKind, distinct: int, seconds: float, machine: MachineFacts
) -> tuple[StagePlan, bool]:
    """As `_first_stage`, for the denoiser."""
    stage = None
    for network in reversed(SECOND):
        batch = min(_second_batch(network, side, kind, seconds, machine), _power(distinct))
        key = key_of_second(network, side, kind, batch)
        pace = SUSTAINED * machine.seconds("second", key, network.operations(side))
        parameters = _parameters(machine, "second", key) or network.parameters(side)
        small, accumulate, memory = _in_memory(batch, COPIES * parameters, network.activations(side), machine)
        images = min(seconds / pace, max(20_000, EPOCHS * distinct))
        steps = max(1, int(images / batch))
        stage = StagePlan(network.name, key, small, accumulate, steps, pace, parameters, memory)
        fits = memory <= MEMORY_SHARE * machine.memory
        if fits and seconds / pace >= network.images and distinct >= network.distinct:
            return stage, True
    assert stage is not None
    return stage, stage.memory <= MEMORY_SHARE * machine.memory


def _page(second: StagePlan, seconds: float) -> tuple[int, float]:
    """How many samples the page has time for, and its seconds."""
    each = CALLS * CALL_SHARE * second.image_seconds
    samples = next((count for count in SAMPLES if count * each <= PAGE_SHARE * seconds), SAMPLES[-1])
    return samples, samples * each + 0.01 * seconds


def _enough(plan: FitPlan) -> bool:
    """Whether both stages see enough images for this image size; a small folder needs fewer."""
    first, second = next((ENOUGH[size] for size in sorted(ENOUGH, reverse=True) if plan.size >= size), (0, 0))
    few = max(3_000, 400 * plan.trained)
    return plan.first.images >= min(first, few) and plan.second.images >= min(second, few)


def _held_out(images: int) -> int:
    return 0 if images < FEW else min(512, max(2, images // 10 if images < 1_000 else round(0.03 * images)))


# ---- batches, keys, memory


def key_of_first(network: FirstNetwork, size: int, factor: int, batch: int, perceptual: bool) -> str:
    """The name of the measurement of an autoencoder."""
    return f"{network.name}-{size}-f{factor}-{batch}{'-features' if perceptual else ''}"


def key_of_second(network: SecondNetwork, side: int, kind: ConditionerKind, batch: int) -> str:
    """The name of the measurement of a denoiser."""
    return f"{network.name}-{side}-{kind}-{batch}"


def _first_batch(machine: MachineFacts) -> int:
    return 64 if machine.device == "cuda" else 8


def _second_batch(
    network: SecondNetwork, side: int, kind: ConditionerKind, seconds: float, machine: MachineFacts
) -> int:
    """Large batches share the optimiser's cost; with little time there should still be some hundred steps."""
    if machine.device == "cuda":
        return 256
    each = machine.seconds("second", key_of_second(network, side, kind, 32), network.operations(side))
    return 64 if seconds / each >= 64 * 500 else 32


def _power(distinct: int) -> int:
    """The largest power of two up to the number of images."""
    return 1 << max(0, max(1, distinct).bit_length() - 1)


def _first_seconds(
    network: FirstNetwork, size: int, factor: int, batch: int, perceptual: bool, machine: MachineFacts
) -> float:
    operations = network.operations(size, factor) * (1.5 if perceptual else 1)
    return machine.seconds("first", key_of_first(network, size, factor, batch, perceptual), operations)


def _parameters(machine: MachineFacts, stage: Literal["first", "second"], key: str) -> int:
    known = machine.first if stage == "first" else machine.second
    return known[key].parameters if key in known else 0


def _in_memory(batch: int, weights: float, activations: float, machine: MachineFacts) -> tuple[int, int, int]:
    """(batch, accumulate, bytes): micro-batches are halved as long as they do not fit, a step stays as it is."""
    accumulate = 1
    while PROCESS + weights + batch * activations > MEMORY_SHARE * machine.memory and batch > 1:
        batch, accumulate = batch // 2, 2 * accumulate
    return batch, accumulate, int(PROCESS + weights + batch * activations)


# ---- words


def _check_time(plan: FitPlan) -> None:
    """Raises UserError, with the time that is needed, where a stage has too few steps to learn anything."""
    if min(plan.first.steps, plan.second.steps) >= LEAST_STEPS:
        return
    first, second = (LEAST_STEPS * s.batch * s.accumulate * s.image_seconds for s in (plan.first, plan.second))
    training = max(first / FIRST_SHARE, second / (1 - FIRST_SHARE) / (1 - PAGE_SHARE))
    least = 1.1 * (plan.preparing + plan.encoding + training)
    raise UserError(
        f"{_minutes(plan.seconds)} are too short: on this machine the smallest networks need about {_minutes(least)} "
        f"for {_count(LEAST_STEPS, 'step')} each; give --minutes {max(1, round(least / 60 + 0.5))} or more"
    )


def _explained(plan: FitPlan, sizes: Sequence[int], too_large: int | None) -> FitPlan:
    """The plan with its sentences."""
    data = plan.data
    reasons = [
        _why_size(plan, sizes, too_large),
        _of_first(plan),
        why_conditioned(data, plan.conditioner),
        _of_second(plan),
    ]
    reasons += unused(data, plan.conditioner)
    if plan.mirrored:
        reasons.append("Mirrored images are added: the folder is small, and no caption or class mentions a side.")
    warnings = []
    if plan.images < plan.data.total:
        warnings.append(
            f"{plan.images:,} of {plan.data.total:,} images are used: reading and encoding more would take over "
            f"{PREPARING_SHARE:.0%} of the time."
        )
    if plan.held_out == 0:
        warnings.append(
            f"With {_count(plan.images, 'image')} none is held out: quality is measured on training images."
        )
    few = advice_for_few(plan.trained, plan.images - plan.held_out)
    warnings += [] if few is None else [few]
    if len(plan.data.classes) == 1 and plan.conditioner == "none":
        warnings.append(
            f"All images are in one class, {next(iter(plan.data.classes))!r}: the model is trained without classes."
        )
    if plan.data.cropped >= CROPPED:
        network = next(each for each in SECOND if each.name == plan.second.network)
        step = plan.factor * 2 ** (len(network.multipliers(plan.latent_side)) - 1)
        warnings.append(
            f"Square crops cut off {plan.data.cropped:.0%} of an image on average. Training at several sizes keeps "
            f"more: write the plan with --plan FILE and add 'data.buckets={{step: {step}}}' to both of its commands."
        )
    if plan.first.accumulate > 1 or plan.second.accumulate > 1:
        warnings.append(f"Batches are split to fit {gib(plan.machine.memory)} of free memory.")
    if plan.total < 0.8 * plan.seconds:
        warnings.append(
            f"It takes about {_minutes(plan.total)} of the {_minutes(plan.seconds)}: longer training on so few "
            "images would only memorise them."
        )
    return replace(plan, quality=_expected(plan), reasons=tuple(reasons), warnings=tuple(warnings))


def explained_again(plan: FitPlan) -> FitPlan:
    """The plan with other lengths than `make_plan` gave it: its sentences about them are written again."""
    stages = {"Stage 1": _of_first(plan), "Stage 2": _of_second(plan)}
    return replace(
        plan,
        quality=_expected(plan),
        reasons=tuple(stages.get(reason[:7], reason) for reason in plan.reasons),
        warnings=tuple(warning for warning in plan.warnings if not warning.startswith("It takes about ")),
    )


def _expected(plan: FitPlan) -> str:
    files = plan.images - plan.held_out
    return quality(plan.first.images, plan.second.images, plan.trained, files, plan.conditioner, plan.size)


def _of_first(plan: FitPlan) -> str:
    return first_sentence(plan.first.images, plan.size, plan.factor, plan.trained, plan.spectral)


def _of_second(plan: FitPlan) -> str:
    return second_sentence(plan.second.images, plan.trained)


def _why_size(plan: FitPlan, sizes: Sequence[int], too_large: int | None) -> str:
    text = f"The model is trained at {plan.size} pixels, f = {plan.factor}"
    if plan.size == max(sizes):
        if len(sizes) == 1:
            return f"{text}: the size was set." if plan.size not in sizes_for(plan.data.side) else f"{text}."
        return f"{text}: the images are not larger." if plan.size < SIZES[-1] else f"{text}."
    reason = "do not fit the memory" if too_large == max(sizes) else "would see too few images in the time"
    return f"{text}: at {_next(sizes, plan.size)} pixels the networks {reason}."


def _next(sizes: Sequence[int], size: int) -> int:
    return min(other for other in sizes if other > size)


def _minutes(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 90 * 60 else f"{seconds / 3600:.1f} hours"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def gib(size: float) -> str:
    """Bytes for people."""
    return f"{size / 2**30:.1f} GiB"
