"""The model of a training of both stages at once: before it, in its previews, and as it is saved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from sfumato import rng
from sfumato.autoencoder.scaling import Scaling
from sfumato.data.dataset import Dataset
from sfumato.model import LatentDiffusion, ModelConfig
from sfumato.training.autoencoder import untrained_autoencoder
from sfumato.training.coupling import normalises
from sfumato.training.data import RunData, height_width
from sfumato.training.export import about
from sfumato.training.joint_pass import JointNetworks
from sfumato.training.joint_run import JointRun, first_stage, second_stage
from sfumato.training.previews import Reconstructions, Samples, Values, with_networks
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_around, conditional_denoiser
from sfumato.training.state import TrainState


def first_model(config: JointRun, classes: Sequence[str] | None = None) -> LatentDiffusion:
    """The untrained autoencoder as a model, its weights from the run's seed."""
    run = first_stage(config)
    with rng.seeded(config.train.seed, "weights", "autoencoder", device=torch.device("cpu")):
        autoencoder = untrained_autoencoder(run)
    described = ModelConfig(
        autoencoder=config.model,
        image_size=height_width(config.data),
        classes=None if classes is None else tuple(classes),
    )
    return LatentDiffusion(described, autoencoder, _identity(config))


def joint_model(config: JointRun, images: Dataset, texts: Sequence[str] | None = None) -> LatentDiffusion:
    """Both stages, untrained; a tokenizer is fitted on `texts`, by default the images' captions.

    Raises UserError if the images lack a field that the conditioner reads, or the two do not fit together.
    """
    first = first_model(config, images.classes)
    return build_around(second_stage(config), first, images, lambda: _identity(config), texts=texts)


def joint_networks(model: LatentDiffusion) -> JointNetworks:
    """The model's networks as the loop trains them."""
    return JointNetworks(model.autoencoder, conditional_denoiser(model))


def trained_model(config: JointRun, model: LatentDiffusion, joint: JointNetworks) -> LatentDiffusion:
    """The model with the (averaged) networks of a run, and the scaling between them."""
    scaling = joint.scaling
    plain = Scaling(scaling.shift, scaling.scale) if normalises(config.coupling) else _identity(config)
    own = replace(model, autoencoder=joint.autoencoder, scaling=plain.to(scaling.shift.device))
    return with_networks(own, joint.networks)


@dataclass(frozen=True)
class JointPreview:
    """Writes reconstructions and samples, and measures the latents' spread and effective rank."""

    config: JointRun
    model: LatentDiffusion
    reconstructions: Reconstructions
    samples: Samples

    @classmethod
    def of(cls, config: JointRun, model: LatentDiffusion, data: RunData, folder: RunFolder) -> "JointPreview":
        """On held-out images and with their conditions."""
        train = config.train
        return cls(
            config,
            model,
            Reconstructions.of(
                data.measured, train.preview_images, folder.previews, train.precision, data.about_measured
            ),
            Samples.of(model, data, folder.previews, train.precision),
        )

    def __call__(self, joint: JointNetworks, step: int) -> Values:
        values = self.reconstructions(joint.autoencoder, step)
        samples = replace(self.samples, model=trained_model(self.config, self.model, joint))
        return {**values, **samples(joint.networks, step)}


def save_joint(
    config: JointRun, model: LatentDiffusion, joint: JointNetworks, folder: RunFolder, state: TrainState
) -> None:
    """Writes the model folder of both stages."""
    facts = about(config.data.model_dump(mode="json"), config.train.model_dump(mode="json"), state)
    facts |= {"coupling": config.coupling.kind}
    trained = trained_model(config, model, joint)
    described = trained.config.model_copy(update={"about": {"autoencoder": facts, "diffusion": facts}})
    replace(trained, config=described).save(folder.model)


def _identity(config: JointRun) -> Scaling:
    return Scaling.from_factor(config.model.raw_channels, 1.0)
