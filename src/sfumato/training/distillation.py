"""The loop that distils a model's decoder into a tiny one, for previews.

The target is the decoder's output, not the encoded image: it is a function of the latent, so details that the latent
has lost do not blur the tiny decoder, and a preview shows what the decoder will show. Images are encoded and
decoded once, before the loop; a step then only runs the tiny decoder, on random crops of the pairs.
A distillation takes minutes: it is not resumed, and an interrupted one keeps the weights trained so far.
"""

import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor

from sfumato import flops, rng
from sfumato.autoencoder import losses
from sfumato.autoencoder.losses import PixelLoss
from sfumato.autoencoder.model import AutoencoderConfig, autoencoder_digest
from sfumato.autoencoder.perceptual import NoPerceptual, PerceptualConfig, build_perceptual
from sfumato.autoencoder.scaling import LatentStatistics
from sfumato.autoencoder.tiny import TinyDecoder, TinyDecoderConfig
from sfumato.autoencoder.tiny_file import DistilledConfig
from sfumato.counts import none_of
from sfumato.data.dataset import Dataset, Example, Progress
from sfumato.data.loader import Loader, sweep
from sfumato.engine.precision import autocast
from sfumato.engine.training import for_training
from sfumato.errors import UserError
from sfumato.evaluation.image_quality import psnr
from sfumato.images import to_uint8
from sfumato.model import LatentDiffusion
from sfumato.pipeline import latents as codec
from sfumato.training.averages import ema
from sfumato.training.log import RunLog
from sfumato.training.optim import OptimiserConfig, build_optimiser, gradients_norm, learning_rate, read, set_rate
from sfumato.training.run import interruptible
from sfumato.training.session import Session
from sfumato.training.settings import Count, Decay, LoopSettings
from sfumato.training.state import TrainState
from sfumato.training.steps import check_result, optimizer_step
from sfumato.training.workers import Workers

CHEAPER = 20
"""A tiny decoder of default width takes at least this many times fewer operations than the decoder."""
WIDEST = 128
MEMORY = 2**30
"""Most bytes of target images that are held in memory."""


class Distillation(LoopSettings):
    """Architecture and training of a tiny decoder."""

    steps: Count = 3000
    optimiser: OptimiserConfig = OptimiserConfig(
        learning_rate=4e-3, warmup_steps=50, tail_fraction=0.5, weight_decay=0.0
    )
    ema_decay: Decay = 0.99
    channels: int | None = Field(None, ge=4)
    """Width at the latent's resolution; None: the widest of at most 128 with a twentieth of the decoder's
    operations."""
    blocks: Count = 3
    pixel: PixelLoss = "l2"
    perceptual: PerceptualConfig = Field(NoPerceptual(), discriminator="kind")
    images: Count = 1024
    """Number of images that are encoded and decoded; fewer if their targets would take more than a GiB."""
    crop: Count = 16
    """Side of the random crops of a step, in latent positions."""


class Pairs:
    """Raw latents and their decoded images: a dataset of the images, with the latent as a field.

    Variants are random crops of a latent with the corresponding pixels.
    """

    fields = ("latent",)
    classes = None

    def __init__(self, latents: Tensor, images: Tensor, crop: int) -> None:
        """latents (N, C, h, w); images uint8 (N, 3, f·h, f·w); crop in latent positions."""
        self.latents, self.images = latents, images
        self.crop = (min(crop, latents.shape[2]), min(crop, latents.shape[3]))

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> Example:
        return Example(self.images[index], {"latent": self.latents[index]})

    def variant(self, index: int, seed: int) -> Example:
        (h, w), f = self.crop, self.images.shape[2] // self.latents.shape[2]
        g = rng.numpy_generator(seed, "cut-out")
        top, left = (int(g.integers(0, n - side + 1)) for n, side in zip(self.latents.shape[2:], (h, w), strict=True))
        image = self.images[index, :, f * top : f * (top + h), f * left : f * (left + w)]
        return Example(image, {"latent": self.latents[index, :, top : top + h, left : left + w]})

    def fingerprint(self) -> str:
        return f"pairs-{len(self)}"

    def captions(self) -> list[str] | None:
        return None


def tiny_decoder_config(config: Distillation, model: LatentDiffusion) -> DistilledConfig:
    """The configuration of the tiny decoder of a model; to be called before the model is packed.

    Raises UserError for a model in pixel space, or if the decoder is so small that no tiny one has a twentieth of its
    operations.
    """
    autoencoder = model.config.autoencoder
    if autoencoder.bottleneck.kind == "pixels":
        raise UserError("a model in pixel space has no decoder to distil: its latents are the images")
    channels = config.channels if config.channels is not None else _fitting(config, autoencoder)
    return DistilledConfig(
        decoder=_topology(autoencoder, channels, config.blocks), autoencoder=autoencoder_digest(model.autoencoder)
    )


def _topology(autoencoder: AutoencoderConfig, channels: int, blocks: int) -> TinyDecoderConfig:
    return TinyDecoderConfig(
        latent_channels=autoencoder.raw_channels,
        image_channels=autoencoder.image_channels,
        factor=autoencoder.factor,
        channels=channels,
        blocks=blocks,
    )


def _fitting(config: Distillation, autoencoder: AutoencoderConfig) -> int:
    """The widest, in steps of 4, that is CHEAPER; apart from attention the ratio does not depend on the image size."""
    size = (8 * autoencoder.factor, 8 * autoencoder.factor)
    allowed = flops.decode(autoencoder, size) / CHEAPER
    widths = range(4, WIDEST + 1, 4)
    fitting = bisect_right(  # each count takes a twentieth of a second
        widths, allowed, key=lambda width: flops.decode_tiny(_topology(autoencoder, width, config.blocks), size)
    )
    if not fitting:
        raise UserError(
            f"this model's decoder is so small that no tiny one has a {CHEAPER}th of its operations: set its width "
            "with channels, such as 8"
        )
    return widths[fitting - 1]


@torch.no_grad()
def gather_pairs(
    config: Distillation,
    model: LatentDiffusion,
    dataset: Dataset,
    seconds: float | None = None,
    progress: Progress | None = None,
) -> Pairs:
    """Encodes images chosen by the seed and decodes them again; stops after `seconds` with the pairs it has by then.

    Raises UserError if no image can be read.
    """
    t_start = time.monotonic()
    H, W = model.config.image_size
    most = max(1, min(config.images, MEMORY // (3 * H * W)))
    order = torch.randperm(len(dataset), generator=rng.generator(config.seed, "images"))[:most].tolist()
    latents: list[Tensor] = []
    images: list[Tensor] = []
    for part in sweep(dataset, config.batch, order, unreadable=lambda row, error: None):
        x0, decoded = _decoded(model, part.images)
        latents.append(model.scaling.to_raw(x0).cpu())
        images.append(to_uint8(decoded).cpu())
        done = sum(map(len, latents))
        if progress is not None:
            progress(done, len(order))
        if seconds is not None and time.monotonic() - t_start > seconds:
            break
    if not latents:
        raise UserError(f"{none_of(len(order), 'image')} can be read: check the data folder")
    return Pairs(torch.cat(latents), torch.cat(images), config.crop)


def _decoded(model: LatentDiffusion, images: Tensor) -> tuple[Tensor, Tensor]:
    """Model latents (B, C, h, w) of images, and the decoder's output for them."""
    x0 = model.encode(images)
    return x0, model.decode(x0)


def build_tiny_decoder(config: Distillation, description: DistilledConfig, pairs: Pairs) -> TinyDecoder:
    """A tiny decoder initialised from the seed, with the scaling of the pairs' latents.

    Raises UserError if a channel is constant.
    """
    statistics = LatentStatistics()
    statistics.update(pairs.latents)
    if not bool((statistics.std() > 0).all()):
        raise UserError("a channel of the latents never varies: train the autoencoder longer or start again")
    with rng.seeded(config.seed, "weights", "tiny decoder", device=torch.device("cpu")):
        return TinyDecoder(description.decoder, statistics.scaling())


def distil(
    config: Distillation, network: TinyDecoder, pairs: Pairs, folder: Path, workers: Workers | None = None
) -> tuple[TinyDecoder, TrainState]:
    """Trains the network on the pairs, logging into `folder`; returns its average and the final state.

    A signal ends the training early, which is noted in the state. Raises UserError if the loss stays non-finite.
    """
    workers = workers or Workers()
    network = workers.place(network.train())
    shadow = ema.average_of(network)
    parameters = list(network.parameters())
    optimiser = build_optimiser(config.optimiser, network)
    state = TrainState(modules={"network": network, "ema": shadow}, optimisers={"network": optimiser})
    perceptual = build_perceptual(config.perceptual)
    perceptual = None if perceptual is None else workers.place(perceptual)
    weight = 0.0 if isinstance(config.perceptual, NoPerceptual) else config.perceptual.weight
    for_training(network)
    precision = autocast(workers.device, config.precision)
    with (
        Loader(pairs, config.batch, config.seed, workers=config.workers) as data,
        RunLog(folder, "tiny decoder", 0, 0.0) as log,
        interruptible() as interrupt,
    ):
        session = Session(data, log, interrupt, config, state, workers, config.batch, way_out=WAY_OUT)
        while session.goes_on():
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(config.optimiser, state.step, session.done))
            batch = next(session.data).to(workers.device)
            target = batch.images.contiguous(memory_format=torch.channels_last)
            with precision:
                output = network(batch.fields["latent"].contiguous(memory_format=torch.channels_last))
                distance = None if perceptual is None else perceptual(output, target)
            loss = losses.with_perceptual(losses.reconstruction(target, output, config.pixel), distance, weight).mean()
            loss.backward()

            norm, error = read(gradients_norm(parameters), loss)
            finite = optimizer_step(optimiser, config, parameters, norm, network, shadow, state)
            session.count(finite, time.monotonic() - t_start)
            session.record({"loss": error, "gradient_norm": norm}, f"loss {error:.4f}")
            session.finish()
    if state.stopped_by:
        check_result(state, WAY_OUT)
    return shadow, state


WAY_OUT = "check that the autoencoder decodes its own latents"


@dataclass(frozen=True)
class DecoderComparison:
    """Mean PSNR in dB, and images (N, 3, H, W) in [-1, 1]: original, full decoder, tiny decoder."""

    tiny_to_full: float
    tiny_to_image: float
    full_to_image: float
    images: Sequence[Tensor]


@torch.no_grad()
def compare_decoders(
    model: LatentDiffusion, network: TinyDecoder, dataset: Dataset, count: int = 64
) -> DecoderComparison:
    """Compares the tiny decoder with the full one on the first images of a dataset."""
    rows = range(min(count, len(dataset)))
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    for part in sweep(dataset, 16, rows, unreadable=lambda row, error: None):
        x0, full = _decoded(model, part.images)
        tiny = codec.preview(network, model.scaling, x0)
        batches.append((part.images, full.clamp(-1, 1).cpu(), tiny.clamp(-1, 1).cpu()))
    if not batches:
        raise UserError(f"none of the {len(rows)} held-out images can be read: check the data folder")
    image, full, tiny = (torch.cat(part) for part in zip(*batches, strict=True))
    return DecoderComparison(
        tiny_to_full=psnr(tiny, full).mean().item(),
        tiny_to_image=psnr(tiny, image).mean().item(),
        full_to_image=psnr(full, image).mean().item(),
        images=(image, full, tiny),
    )
