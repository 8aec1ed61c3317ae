"""Going on from a trained model: its weights stand where drawn ones would.

What a run begins with is part of its configuration (`start`). The optimiser, the averages and the steps begin anew.
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


def start_first(autoencoder: Autoencoder, start: Path) -> None:
    """Gives the autoencoder the weights of the model's. Raises UserError where the two are of other shapes."""
    load_into(autoencoder, load(start).autoencoder.state_dict(), f"start={start}")


def started(start: Path) -> LatentDiffusion:
    """The model that a second stage goes on from. Raises UserError for one without a second stage."""
    model = load(start)
    if model.second is None:
        raise UserError(f"start={start} is an autoencoder, and stage 2 begins with a whole model: leave start out")
    return model


def start_second(second: SecondStage, latent_channels: int, start: LatentDiffusion, where: Path) -> None:
    """Gives denoiser and conditioner the weights of the model's.

    A layout's positions may lie on another grid. Raises UserError where shapes differ, or what the network predicts or
    the schedule does: the weights would then mean something else.
    """
    given, told = start.second, f"start={where}"
    assert given is not None
    if start.autoencoder.latent_channels != latent_channels:
        raise UserError(
            f"{told} draws latents of {start.autoencoder.latent_channels} channels, the autoencoder gives "
            f"{latent_channels}: give its own autoencoder, or one trained on from it"
        )
    for name, mine, its in (
        ("objective.prediction", second.config.prediction, given.config.prediction),
        ("schedule", second.config.schedule, given.config.schedule),
    ):
        if mine != its:
            raise UserError(f"{told} was trained with {name} {its}, the configuration has {mine}: set it alike")
    if (second.conditioner is None) != (given.conditioner is None):
        raise UserError(
            f"{told} was trained with conditioner.kind {given.config.conditioner.kind}, the configuration has "
            f"{second.config.conditioner.kind}: set it alike"
        )
    load_into(second.denoiser, given.denoiser.state_dict(), told)
    if second.conditioner is not None and given.conditioner is not None:
        load_into(second.conditioner, _weights(second.conditioner, given.conditioner), told)


def _weights(conditioner: Conditioner, trained: Conditioner) -> dict[str, Tensor]:
    """The trained conditioner's; those of a layout fit another grid of positions, too."""
    if isinstance(conditioner, LayoutTransformer) and isinstance(trained, LayoutTransformer):
        return conditioner.weights_of(trained)
    return trained.state_dict()
