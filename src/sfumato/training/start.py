"""Starting from a trained model: its weights replace the random initial ones.

The model is part of the run's configuration (`start`). The optimiser, the averages and the step count start afresh.
"""

from pathlib import Path

from torch import Tensor

from sfumato.autoencoder.model import Autoencoder
from sfumato.checkpoint import load_into
from sfumato.conditioning.condition import Conditioner
from sfumato.conditioning.layout import LayoutTransformer
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion, SecondStage
from sfumato.model_folder import load


def start_first(autoencoder: Autoencoder, start: Path, keep_latents: bool = False) -> None:
    """Loads the weights of the model's autoencoder.

    Raises UserError if the shapes differ and, with `keep_latents`, if the same weights would give other latents.
    """
    trained = load(start).autoencoder
    if keep_latents and trained.config.padding != autoencoder.config.padding:
        raise UserError(
            f"start={start} has padding {trained.config.padding}, the configuration {autoencoder.config.padding}, and "
            f"train.part decoder keeps the latents: set model.padding={trained.config.padding}"
        )
    load_into(autoencoder, trained.state_dict(), f"start={start}")


def started(start: Path) -> LatentDiffusion:
    """The model that a second stage starts from. Raises UserError for one without a second stage."""
    model = load(start)
    if model.second is None:
        raise UserError(f"start={start} is an autoencoder, but stage 2 needs a whole model there: leave start out")
    if model.second.config.student is not None:
        raise UserError(
            f"start={start} is a student, which learns from its teacher alone: train the teacher, the model "
            f"{model.second.config.student.teacher}, further and distil it again with `sfumato distill`"
        )
    return model


def start_second(second: SecondStage, latent_channels: int, start: LatentDiffusion, where: Path) -> None:
    """Loads the weights of the model's denoiser and conditioner.

    A layout may have another grid of positions. Raises UserError if shapes, prediction kind or schedule differ: the
    weights would then mean something else.
    """
    trained, name = start.second, f"start={where}"
    assert trained is not None
    if start.autoencoder.latent_channels != latent_channels:
        raise UserError(
            f"{name} generates latents of {start.autoencoder.latent_channels} channels, those of the autoencoder have "
            f"{latent_channels}: give its own autoencoder, or one trained further from it"
        )
    for key, configured, theirs in (
        ("objective.prediction", second.config.prediction, trained.config.prediction),
        ("schedule", second.config.schedule, trained.config.schedule),
    ):
        if configured != theirs:
            raise UserError(
                f"{name} was trained with {key} {theirs}, the configuration has {configured}: make them equal"
            )
    if (second.conditioner is None) != (trained.conditioner is None):
        raise UserError(
            f"{name} was trained with conditioner.kind {trained.config.conditioner.kind}, the configuration has "
            f"{second.config.conditioner.kind}: make them equal"
        )
    load_into(second.denoiser, trained.denoiser.state_dict(), name)
    if second.conditioner is not None and trained.conditioner is not None:
        load_into(second.conditioner, _weights(second.conditioner, trained.conditioner), name)


def _weights(conditioner: Conditioner, trained: Conditioner) -> dict[str, Tensor]:
    """The trained conditioner's weights; those of a layout are adapted to another grid of positions."""
    if isinstance(conditioner, LayoutTransformer) and isinstance(trained, LayoutTransformer):
        return conditioner.weights_of(trained)
    return trained.state_dict()
