"""The losses of stage 2 for a micro-batch, from the prediction of the networks (section 3.2, eq. 3)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sfumato.conditioning.mean import mean_loss
from sfumato.diffusion import objective
from sfumato.diffusion.objective import Adaptation, ObjectiveConfig
from sfumato.diffusion.schedule import Schedule
from sfumato.training.micro import MicroBatch


@dataclass(frozen=True)
class Stage2Losses:
    """Of each sample, all (B,).

    Attributes:
        plain: the objective's loss, before what it learns.
        adapted: the loss that is minimised: `plain` with the learned weighting and the importance of its time.
        recorded: for the history of losses, detached.
        means: the error of the mean latent by the condition alone, 0 without a head.
    """

    plain: Tensor
    adapted: Tensor
    recorded: Tensor
    means: Tensor

    def total(self, config: ObjectiveConfig) -> Tensor:
        """The loss of the micro-batch, a scalar."""
        return (self.adapted + config.condition_mean * self.means).mean()


def stage2_losses(
    config: ObjectiveConfig,
    schedule: Schedule,
    adaptation: Adaptation,
    output: Tensor | tuple[Tensor, Tensor],
    micro: MicroBatch,
) -> Stage2Losses:
    """The losses of what the networks returned: a prediction (B, C, h, w), with a head the predicted mean too."""
    prediction, mean = output if isinstance(output, tuple) else (output, None)
    plain = objective.loss(config, schedule, prediction, micro.x0, micro.noise, micro.times.t)
    adapted, recorded = adaptation(plain, micro.times, schedule)
    means = torch.zeros_like(adapted) if mean is None else mean_loss(mean, micro.x0.detach()).to(adapted.dtype)
    return Stage2Losses(plain, adapted, recorded, means)
