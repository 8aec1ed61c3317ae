"""The cost of computing images before it starts: operations, and about how long they take at this machine's speed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import nn

from sfumato import flops
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.condition import ConditionSpec
from sfumato.engine.precision import Precision
from sfumato.errors import UserError
from sfumato.estimate.calls import network_call, network_calls
from sfumato.estimate.speed import USUAL_UTILISATION, arithmetic_peak
from sfumato.model import LatentDiffusion
from sfumato.pipeline.choices import chosen_steps
from sfumato.pipeline.conditions import source_of
from sfumato.pipeline.parts import canvas_factor, second_stage
from sfumato.pipeline.plan import guidance_scale, window_of
from sfumato.pipeline.request import SampleRequest
from sfumato.sampling.grids import tail
from sfumato.sampling.inpainting import with_jumps
from sfumato.sampling.windows import windows

MOST_OPERATIONS = {"cpu": 3e14, "cuda": 1e17}
"""Limit of one step without progress: a reconstruction, or the network calls of one sampling step, of one image.

About an hour of a processor's, some minutes of a GPU's."""
FEW_OPERATIONS = {"cpu": 2e11, "cuda": 2e13}
"""Seconds at most: not worth counting exactly."""
_COUNTED_STEPS = 50
"""Network calls are counted over this many steps at most; more have proportionally more."""


@dataclass(frozen=True)
class ImageWork:
    """Operations of computing images.

    Attributes:
        images: their number.
        size: (H, W), of the largest.
        positions: latent positions of the largest.
        step: of its largest step.
        total: of all images.
    """

    images: int
    size: tuple[int, int]
    positions: int
    step: float
    total: float


def check_affordable(work: ImageWork, device: str, what: str, advice: str) -> None:
    """Raises UserError where a single step takes more than MOST_OPERATIONS; `what` is the subject of the message."""
    most = _of(MOST_OPERATIONS, device)
    if work.step > most:
        raise UserError(
            f"{what} would take {work.step:.1e} operations, with attention over {work.positions:,} positions; the "
            f"limit on {device} is {most:.0e}; {advice}"
        )


def seconds(work: ImageWork, device: torch.device, precision: Precision) -> float:
    """About how long it takes here; 0 for so few operations that it is not measured. Measuring takes a second at
    most."""
    if work.total < _of(FEW_OPERATIONS, device.type):
        return 0.0
    return work.total / (USUAL_UTILISATION * arithmetic_peak(device, precision))


# ---- reconstruction


def reconstruction(config: AutoencoderConfig, sizes: Sequence[tuple[int, int]]) -> ImageWork:
    """Encoding and decoding images of sizes (H, W); sides are padded to multiples of f."""
    encode, decode = coding(config)
    f = config.factor
    padded = [(-(-H // f) * f, -(-W // f) * f) for H, W in sizes]
    each = [encode(size) + decode(size) for size in padded]
    most = max(range(len(sizes)), key=each.__getitem__)
    H, W = padded[most]
    return ImageWork(len(sizes), sizes[most], H // f * (W // f), each[most], sum(each))


def largest(sizes: Mapping[str, tuple[int, int]]) -> tuple[str, tuple[int, int]]:
    """The name and size (H, W) of the image with the most pixels."""
    return max(sizes.items(), key=lambda item: item[1][0] * item[1][1])


Count = Callable[[tuple[int, int]], float]
"""Operations for an image of size (H, W), multiples of f."""


def coding(config: AutoencoderConfig) -> tuple[Count, Count]:
    """Operations of encoding and of decoding as functions of the size, from two counts each.

    Both are a·N + b·N² for N latent positions: convolutions and projections are linear, attention is quadratic.
    """
    return _by_positions(config, flops.encode), _by_positions(config, flops.decode)


def _by_positions(config: AutoencoderConfig, count: Callable[[AutoencoderConfig, tuple[int, int]], int]) -> Count:
    f, n = config.factor, 16
    one, two = count(config, (4 * f, 4 * f)), count(config, (8 * f, 4 * f))
    b = (two - 2 * one) / (2 * n * n)
    a = one / n - b * n

    def operations(size: tuple[int, int]) -> float:
        N = (size[0] // f) * (size[1] // f)
        return a * N + b * N * N

    return operations


# ---- sampling


def sampling(
    model: LatentDiffusion, request: SampleRequest, size: tuple[int, int], count: int, encodes: int = 0
) -> ImageWork:
    """Sampling `count` images of size (H, W) by a request; sides are padded to multiples of both networks' factors.

    encodes: images of this size that are encoded beforehand. Raises UserError for options that do not fit the model.
    """
    return pieces(model, request, size, count, steps_and_calls(model, request), encodes, 1)


def inversion(
    model: LatentDiffusion,
    request: SampleRequest,
    size: tuple[int, int],
    count: int,
    steps: int,
    refinements: int,
    again: int = 0,
) -> ImageWork:
    """Inverting `count` images of size (H, W), each step with `refinements` more calls, and sampling them; `again`:
    times that they are sampled by the request besides."""
    plain = replace(request, guidance=1.0)
    first = pieces(model, plain, size, count, (2 * steps, steps * (2.0 + refinements)), count, 2)
    if not again:
        return first
    other = pieces(model, request, size, count * again, steps_and_calls(model, request), 0, 1)
    return replace(first, step=max(first.step, other.step), total=first.total + other.total)


def pieces(
    model: LatentDiffusion,
    request: SampleRequest,
    size: tuple[int, int],
    count: int,
    steps_and_calls: tuple[int, float],
    encodes: int,
    decodes: int,
) -> ImageWork:
    """Steps with guided network calls in them and `decodes` decodings for each of `count` images of size (H, W), and
    `encodes` encodings in all; otherwise as `sampling`."""
    factor, f = canvas_factor(model), model.autoencoder.factor
    padded = (-(-size[0] // factor) * factor, -(-size[1] // factor) * factor)
    shape = (model.autoencoder.latent_channels, padded[0] // f, padded[1] // f)
    positions = shape[1] * shape[2]
    side = window_of(model, request, shape)
    passes = _passes(model, request) * len(windows(shape[1:], side, request.overlap))
    steps, calls = steps_and_calls
    code = _at_most(model.autoencoder, padded[0] * padded[1], positions)
    call = passes * _at_most(second_stage(model).denoiser, side[0] * side[1], side[0] * side[1])
    if count * (calls * call + decodes * code) + encodes * code < _of(FEW_OPERATIONS, model.device.type):
        return ImageWork(count, size, positions, 0, 0)
    encode, decode = (one(padded) for one in coding(model.config.autoencoder))
    if request.decoder == "tiny" and model.tiny is not None:
        decode = flops.decode_tiny(model.tiny.network.config, padded)
    call = passes * _network_call(model, side)
    if request.image_guidance is not None:  # a gradient through the network and the decoder at every call
        call = 3 * (call + decode)
    total = encodes * encode + count * (calls * call + decodes * decode)
    return ImageWork(count, size, positions, max(encode * bool(encodes), decode, call * calls / max(1, steps)), total)


def _network_call(model: LatentDiffusion, side: tuple[int, int]) -> int:
    """Operations of one call on a latent of size (h, w)."""
    second = second_stage(model)
    spec = ConditionSpec() if second.conditioner is None else second.conditioner.spec
    return network_call(second.config, (model.autoencoder.latent_channels, *side), spec)


def steps_and_calls(model: LatentDiffusion, request: SampleRequest) -> tuple[int, float]:
    """Steps, and guided network calls in them, of a request with its strength and jumps."""
    second = second_stage(model)
    chosen = chosen_steps(second, request, guidance_scale(source_of(model), None))
    times = chosen.times
    if request.strength == 0:
        return 0, 0.0
    if request.strength < 1:
        times = tail(times, request.strength)
    if request.jumps is not None:
        times = with_jumps(times, *request.jumps)
    counted = min(len(chosen.times) - 1, _COUNTED_STEPS)
    each = network_calls(chosen.choice.sampler, second.schedule, counted) / counted
    return len(times) - 1, each * (len(times) - 1)


def _passes(model: LatentDiffusion, request: SampleRequest) -> int:
    """Evaluations of the network for one guided call; a model with guidance by default counts as guided."""
    weaker = int(request.autoguide is not None)
    if isinstance(request.guidance, Mapping):
        return 1 + len(request.guidance) + weaker
    scales = request.guidance if isinstance(request.guidance, Sequence) else [request.guidance]
    source = source_of(model)
    guided = any(guidance_scale(source, scale) != 1 for scale in scales if scale is not None or not weaker)
    return (2 if guided else 1) + weaker


def _at_most(network: nn.Module, applied: int, attended: int) -> float:
    """An upper bound without counting: every weight is used at `applied` positions, wide attention over `attended`."""
    parameters = sum(tensor.numel() for tensor in chain(network.parameters(), network.buffers()))
    return 2 * parameters * applied + 128 * parameters**0.5 * attended**2


def _of(limits: Mapping[str, float], device: str) -> float:
    return limits.get(device, limits["cpu"])
