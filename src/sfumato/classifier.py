"""A trained classifier of noisy latents: its folder, and classifier guidance of a diffusion model (ADM-G).

A classifier folder is `config.yaml` and `classifier.safetensors`. It belongs to the autoencoder on whose latents it was
trained, to their scaling and to a noise schedule: a model that differs in one of them is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from sfumato.autoencoder.model import autoencoder_digest
from sfumato.autoencoder.scaling import Scaling
from sfumato.checkpoint import load_into, load_tensors, save_tensors, write_text
from sfumato.config import load_config, to_yaml
from sfumato.denoiser.classifier import ClassifierConfig, NoisyClassifier
from sfumato.diffusion.process import timestep_like
from sfumato.diffusion.schedule import Schedule, ScheduleConfig, build_schedule
from sfumato.errors import UserError
from sfumato.foreign import reading
from sfumato.model import LatentDiffusion
from sfumato.nn.init import without_weights
from sfumato.pipeline.conditions import class_number
from sfumato.pipeline.request import ClassifierGuidance
from sfumato.schema import Schema
from sfumato.stored_format import FORMAT
from sfumato.versions import CONFIG_FILE, newest_version, read_one_version, replacing_folder

WEIGHTS_FILE = "classifier.safetensors"
SCALING_TOLERANCE = 0.05
"""Largest difference of two scalings, in standard deviations of the latent: other images of the same kind differ by 1
%."""


class LatentClassifierConfig(Schema):
    """`config.yaml` of a classifier folder. `autoencoder` identifies the first stage's weights, `about` describes the
    training."""

    format: Literal[2] = FORMAT
    classifier: ClassifierConfig
    latent_channels: int = Field(gt=0, le=65536)
    classes: int = Field(ge=2, le=10_000_000)
    names: tuple[str, ...] | None = None
    schedule: ScheduleConfig
    autoencoder: str
    shift: tuple[float, ...]
    scale: tuple[float, ...]
    about: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class LatentClassifier:
    """A classifier ready for use. Created by `load_classifier` or by training."""

    config: LatentClassifierConfig
    network: NoisyClassifier
    schedule: Schedule

    def save(self, folder: Path) -> None:
        """Writes the folder; an existing one is replaced only once the new one is complete."""
        with replacing_folder(folder) as fresh:
            save_tensors(fresh / WEIGHTS_FILE, self.network.state_dict())
            write_text(fresh / CONFIG_FILE, to_yaml(self.config))

    def class_index(self, label: int | str) -> int:
        """The number of a class given by number or name. Raises UserError for an unknown one."""
        return class_number(label, self.config.names or (), self.config.classes, "class", "the classifier")

    def check_fits(self, model: LatentDiffusion) -> None:
        """Raises UserError where the model's latents or noise differ from the classifier's training."""
        if model.second is None:
            raise UserError("a classifier guides a diffusion model, but this model is an autoencoder only")
        if model.second.config.schedule != self.config.schedule:
            raise UserError("the classifier was trained with another noise schedule than this model's: train a new one")
        if autoencoder_digest(model.autoencoder) != self.config.autoencoder:
            raise UserError("the classifier was trained on the latents of another autoencoder: train it on this one's")
        shift, scale = model.scaling.shift.cpu(), model.scaling.scale.cpu()
        drift = max(
            float(((shift - torch.tensor(self.config.shift)).abs() * scale).max()),
            float((torch.tensor(self.config.scale) / scale - 1).abs().max()),
        )
        if drift > SCALING_TOLERANCE:
            raise UserError(
                "the classifier's latents are scaled differently from this model's: train it on the same data"
            )

    def log_likelihood(self, label: int | Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        """(x_t (B, C, h, w), t) -> log p(label | x_t) (B,), differentiable in x_t; label one number, or (B,)."""

        def log_p(x_t: Tensor, t: Tensor) -> Tensor:
            log_probabilities = self.network(x_t, timestep_like(t, self.schedule.steps, x_t)).float().log_softmax(1)
            chosen = torch.as_tensor(label, device=x_t.device).expand(x_t.shape[0])
            return log_probabilities.gather(1, chosen[:, None])[:, 0]

        return log_p

    def guide(self, label: int | str, scale: float = 1.0) -> ClassifierGuidance:
        """Guidance to the class (Dhariwal & Nichol 2021, Algorithm 2), for `SampleRequest.classifier`.

        scale: factor of the gradient of log p; 0 is off. Raises UserError for an unknown class or a scale out of range.
        """
        return ClassifierGuidance(self.log_likelihood(self.class_index(label)), scale)


def described(
    config: ClassifierConfig,
    first: LatentDiffusion,
    scaling: Scaling,
    schedule: ScheduleConfig,
    classes: int,
    names: tuple[str, ...] | None,
) -> LatentClassifierConfig:
    """The configuration of a classifier on the latents of `first` under a scaling."""
    return LatentClassifierConfig(
        classifier=config,
        latent_channels=first.autoencoder.latent_channels,
        classes=classes,
        names=names,
        schedule=schedule,
        autoencoder=autoencoder_digest(first.autoencoder),
        shift=tuple(scaling.shift.tolist()),
        scale=tuple(scaling.scale.tolist()),
    )


def build_classifier(config: LatentClassifierConfig) -> LatentClassifier:
    """A classifier with newly initialised weights."""
    network = NoisyClassifier(config.classifier, config.latent_channels, config.classes)
    with torch.device("cpu"):
        schedule = build_schedule(config.schedule)
    return LatentClassifier(config, network, schedule)


def load_classifier(path: Path | str, device: torch.device | str = "cpu") -> LatentClassifier:
    """Opens a classifier folder, or the newest classifier of a run, also while a training replaces it.

    Raises UserError naming what is missing.

    Example:
        >>> classifier = sfumato.load_classifier("runs/classifier")
        >>> guidance = classifier.guide(2, scale=1.5)  # the option `classifier` of model.sample
        >>> guidance.scale
        1.5
    """
    loaded = read_one_version(lambda: _find_folder(Path(path)), _load)
    loaded.network.to(device)
    return loaded


def _find_folder(path: Path) -> Path:
    """The classifier folder at a path. Raises UserError if there is none."""
    folder = newest_version(path, (WEIGHTS_FILE, CONFIG_FILE))
    if folder is None:
        expected = "the folder of a run of `sfumato train classifier`" if path.exists() else "an existing folder"
        raise UserError(f"classifier {str(path)!r} contains no {WEIGHTS_FILE} with a {CONFIG_FILE}: give {expected}")
    return folder


def _load(folder: Path) -> LatentClassifier:
    """The classifier in a folder, on the CPU."""
    with reading(folder):
        config = load_config(str(folder / CONFIG_FILE), [], LatentClassifierConfig)
        with without_weights():
            classifier = build_classifier(config)
        load_into(classifier.network, load_tensors(folder / WEIGHTS_FILE)[0], str(folder / WEIGHTS_FILE))
    classifier.network.eval().requires_grad_(False)
    return classifier
