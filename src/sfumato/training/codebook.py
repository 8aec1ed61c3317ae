"""The codebook of a VQ autoencoder during training: initialisation, usage counts, revival of unused codes."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sfumato import rng
from sfumato.autoencoder.bottleneck import VectorQuantizer, code_counts, kmeans, revive_dead_codes
from sfumato.autoencoder.model import Autoencoder, VQConfig
from sfumato.data.dataset import Dataset
from sfumato.data.loader import Loader
from sfumato.training.step_noise import Batches
from sfumato.training.workers import Workers

FEW_CODES = 0.05
"""The share of the codes below which a codebook counts as dead, once it had the time to spread."""
SPREAD_STEPS = 200


class CodeCounts(nn.Module):
    """How often each code was used: in this epoch, and since the last revival. Buffers, to survive a resume."""

    epoch: Tensor
    recent: Tensor

    def __init__(self, codes: int) -> None:
        super().__init__()
        self.register_buffer("epoch", torch.zeros(codes, dtype=torch.long))
        self.register_buffer("recent", torch.zeros(codes, dtype=torch.long))
        self.reported = False
        """Whether this session has reported a dead codebook."""

    def add(self, indices: Tensor, workers: Workers) -> None:
        """Counts the codes of a step over all processes, so that the counts agree on all ranks."""
        counts = workers.total(code_counts(indices, len(self.epoch)))
        self.epoch += counts
        self.recent += counts

    def used_in_epoch(self) -> float:
        """The share of codes that the epoch used; a new epoch begins."""
        used = (self.epoch > 0).float().mean().item()
        self.epoch.zero_()
        return used


def report_dead_codes(
    bottleneck: object, counts: CodeCounts, step: int, done: float, say: Callable[[str], None]
) -> None:
    """Logs by `say`, once a session, that this epoch's latents used hardly any of the codes that they could have used.

    It has the time until a revival of its unused codes, or to the end of the run (`done` 1), to come into use.
    """
    if not isinstance(bottleneck, VQConfig) or counts.reported:
        return
    codes, used, latents = len(counts.epoch), int((counts.epoch > 0).sum()), int(counts.epoch.sum())
    spread = done == 1 or step > max(SPREAD_STEPS, bottleneck.revive_every)
    if spread and latents and used < max(2.0, FEW_CODES * min(codes, latents)):
        say(
            f"the codebook is nearly dead: {latents} latents used {used} of {codes} codes; if the images differ "
            "from each other, set model.bottleneck.kmeans_init, revive_every and normalise, or fewer codes"
        )
        counts.reported = True


@torch.no_grad()
def start_codebook(
    config: VQConfig,
    train: Batches,
    live: Autoencoder,
    averaged: Autoencoder,
    dataset: Dataset,
    precision: torch.autocast,
    workers: Workers,
) -> None:
    """Sets the codes to cluster means of the first step's latents.

    Every rank computes them from the same images; DistributedDataParallel then broadcasts those of rank 0.
    """
    with Loader(dataset, train.batch * train.accumulate * workers.world, train.seed, workers=0) as data:
        parts = next(data).to(workers.device).images.split(train.batch)
    with precision, rng.seeded(train.seed, "dropout", "kmeans", device=workers.device):
        latents = torch.cat([live.encode(part).moments for part in parts])
    codes = kmeans(latents, config.codes, rng.generator(train.seed, "kmeans"))
    for network in (live, averaged):
        _quantizer(network).embedding.weight.copy_(codes)


@torch.no_grad()
def revive_codes(
    live: Autoencoder,
    averaged: Autoencoder,
    counts: CodeCounts,
    latents: list[Tensor],
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
    workers: Workers,
) -> None:
    """Moves the codes that were not used since the last revival onto latents of the step's whole batch.

    latents: this rank's, (B, C, h, w) for each micro-batch. All ranks gather the same and move the same codes.
    """
    weight = _quantizer(live).embedding.weight
    whole = torch.cat([workers.gather(part) for part in latents])
    renewed, dead = revive_dead_codes(weight, counts.recent, whole, generator)
    weight.copy_(renewed)
    _quantizer(averaged).embedding.weight[dead] = renewed[dead]
    for value in optimiser.state[weight].values():
        if value.shape == renewed.shape:
            value[dead] = 0
    counts.recent.zero_()


def _quantizer(autoencoder: Autoencoder) -> VectorQuantizer:
    assert autoencoder.quantize is not None
    return autoencoder.quantize
