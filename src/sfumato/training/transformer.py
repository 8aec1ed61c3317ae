"""The baseline's stage 2: the loop that trains a transformer on the codes of cached latents (Esser et al. 2021)."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Self

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder.bottleneck import VectorQuantizer, codebook_digest
from sfumato.baselines.model import CodeModel, CodeModelConfig, build_code_model, codebook_of
from sfumato.baselines.network import CodeTransformer, CodeTransformerConfig
from sfumato.conditioning.condition import Condition, Conditioner, Fields, select
from sfumato.conditioning.table import ConditionerConfig, NoneConfig
from sfumato.data.dataset import LatentSource
from sfumato.data.latents import MeasuredLatents
from sfumato.data.table import DataConfig
from sfumato.engine.precision import autocast
from sfumato.model import LatentDiffusion
from sfumato.schema import Schema
from sfumato.training.averages import ema
from sfumato.training.data import HeldOut, check_one_size, height_width
from sfumato.training.optim import build_optimiser, gradients_norm, learning_rate, read, set_rate
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import check_fields, fitted_tokenizer
from sfumato.training.session import Periodic, open_session, resume
from sfumato.training.settings import ConditionDropout, Count, Mirrored, WholeNetworks
from sfumato.training.state import TrainState
from sfumato.training.steps import optimizer_step
from sfumato.training.workers import Workers


class TransformerTraining(ConditionDropout, WholeNetworks):
    """Length and settings of the training; a step uses batch · accumulate · processes images."""

    batch: Count = 32


class TransformerRun(Schema):
    """The configuration of `sfumato train transformer`."""

    transformer: CodeTransformerConfig = CodeTransformerConfig()
    conditioner: ConditionerConfig = NoneConfig()
    data: DataConfig
    held_out: HeldOut = HeldOut()
    mirrored: Mirrored = False
    train: TransformerTraining = TransformerTraining()

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        check_one_size(self.data, "a transformer over codes")
        return self


class ConditionalTransformer(nn.Module):
    """Transformer and conditioner as one module: what is trained, averaged and wrapped together."""

    def __init__(self, transformer: CodeTransformer, conditioner: Conditioner | None) -> None:
        super().__init__()
        self.transformer = transformer
        self.conditioner = conditioner

    def forward(self, codes: Tensor, fields: Fields, keep: Tensor | None = None) -> Tensor:
        """codes (B, T) -> logits (B, T, K); `keep` (B,) bool, False where the image is trained without its
        condition."""
        if self.conditioner is None:
            return self._logits(Condition(), codes)
        condition = self.conditioner(fields)
        if keep is not None:
            condition = select(keep, condition, self.conditioner.null(len(codes), self.transformer.size))
        return self._logits(condition, codes)

    def _logits(self, condition: Condition, codes: Tensor) -> Tensor:
        logits: Tensor = self.transformer(condition, codes)
        return logits


Preview = Callable[[ConditionalTransformer, int], Mapping[str, float | list[float]]]
"""Called with the averaged networks and the step: writes samples and returns numbers for the log."""

Export = Callable[[ConditionalTransformer, TrainState], None]
"""Writes the model folder of the averaged networks."""


def build_transformer(
    config: TransformerRun, first: LatentDiffusion, latents: MeasuredLatents, texts: Sequence[str] | None = None
) -> CodeModel:
    """The model to train, initialised from the run's seed; a tokenizer is fitted on `texts`, if given.

    Raises UserError if the autoencoder has no codebook, or the data lacks a field that the conditioner reads.
    """
    codebook_of(first)
    described = CodeModelConfig(
        transformer=config.transformer,
        conditioner=config.conditioner,
        condition_dropout=0.0 if config.conditioner.kind == "none" else config.train.condition_dropout,
        image_size=height_width(config.data),
        classes=latents.classes,
        about=first.config.about,
    )
    tokenizer = fitted_tokenizer(config.conditioner, latents.captions() if texts is None else texts)
    with rng.seeded(config.train.seed, "weights", "transformer", device=torch.device("cpu")):
        model = build_code_model(described, first, tokenizer)
    if model.conditioner is not None:
        check_fields(model.conditioner.reads, latents.fields)
    return model


def train_transformer(
    config: TransformerRun,
    networks: ConditionalTransformer,
    quantize: VectorQuantizer,
    latents: LatentSource,
    folder: RunFolder,
    preview: Preview,
    export: Export,
    workers: Workers | None = None,
) -> TrainState:
    """Trains `networks`, or resumes the run in `folder`; returns the final state.

    The codebook only gives the codes of cached latents: images are never encoded here.
    Raises UserError if the folder holds another run, the disk fills up, or the loss stays non-finite.
    """
    train, workers = config.train, workers or Workers()
    networks, quantize = workers.place(networks), quantize.to(workers.device)
    shadow = ema.average_of(networks)
    parameters = [p for p in networks.parameters() if p.requires_grad]
    state = TrainState(
        modules={"networks": networks, "ema": shadow},
        optimisers={"networks": build_optimiser(train.optimiser, networks)},
    )
    optimiser = state.optimisers["networks"]
    resume(folder, state, latents, codebook_digest(quantize))
    wrapped = workers.wrap(networks)
    precision = autocast(workers.device, train.precision)
    tasks = [Periodic(train.preview_every, lambda: preview(shadow, state.step))]
    save = partial(export, shadow, state)
    with open_session("transformer", latents, train, state, folder, workers, tasks, save) as session:
        while session.goes_on():
            t_start = time.monotonic()
            set_rate(optimiser, learning_rate(train.optimiser, state.step, session.done))
            loss_sum = torch.zeros((), device=workers.device)
            for micro, keep in enumerate(
                _condition_masks(config, networks.conditioner is not None, state.step, workers)
            ):
                batch = next(session.data).to(workers.device)
                codes = quantize.search(batch.moments).flatten(1)
                dropout = rng.seeded(train.seed, "dropout", state.step, micro, workers.rank, device=codes.device)
                with workers.accumulating(micro == train.accumulate - 1, wrapped):
                    with precision, dropout:
                        logits = wrapped(codes, batch.fields, keep)
                    loss = F.cross_entropy(logits.float().flatten(0, 1), codes.flatten())
                    (loss / train.accumulate).backward()
                loss_sum += loss.detach() / train.accumulate

            workers.average([loss_sum])
            norm, mean_loss = read(gradients_norm(parameters), loss_sum)
            finite = optimizer_step(optimiser, train, parameters, norm, networks, shadow, state)
            session.count(finite, time.monotonic() - t_start)

            rate = optimiser.param_groups[0]["lr"]
            session.record({"loss": mean_loss, "gradient_norm": norm, "learning_rate": rate}, f"loss {mean_loss:.4f}")
            session.finish()
    return state


def _condition_masks(config: TransformerRun, conditional: bool, step: int, workers: Workers) -> list[Tensor | None]:
    """Which images keep their condition, for each micro-batch: this rank's rows of the step's mask; None keeps all."""
    train = config.train
    if not conditional or train.condition_dropout == 0:
        return [None] * train.accumulate
    rows = (train.accumulate, workers.world, train.batch)
    keep = torch.rand(rows, generator=rng.generator(train.seed, "condition-dropout", step)) >= train.condition_dropout
    return list(keep[:, workers.rank].to(workers.device, non_blocking=True))
