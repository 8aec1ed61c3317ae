"""Writing the model folder of a run, which `sfumato.load` opens, from the averaged weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato import __version__
from sfumato.autoencoder.model import Autoencoder
from sfumato.autoencoder.scaling import Scaling
from sfumato.baselines.model import CodeModel
from sfumato.classifier import LatentClassifier
from sfumato.denoiser.classifier import NoisyClassifier
from sfumato.model import LatentDiffusion, ModelConfig
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.classifier import ClassifierRun
from sfumato.training.data import RunData, height_width, trained_sizes
from sfumato.training.diffusion import ConditionalDenoiser
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.few_steps import FewStepRun
from sfumato.training.previews import with_code_networks, with_networks
from sfumato.training.run import RunFolder
from sfumato.training.state import TrainState
from sfumato.training.transformer import ConditionalTransformer, TransformerRun

DESCRIBED = ("kind", "path", "size", "length", "seed", "fields", "vocabulary")
"""Settings of the data that a model folder records: enough to make a toy world again."""


def save_autoencoder(
    autoencoder: Autoencoder, config: AutoencoderRun, data: RunData, folder: RunFolder, state: TrainState
) -> None:
    """Writes stage 1; the scaling of its latents is measured when a dataset is encoded for stage 2."""
    model = LatentDiffusion(
        config=ModelConfig(
            autoencoder=config.model,
            image_size=height_width(config.data),
            trained_sizes=trained_sizes(data.training),
            classes=data.training.classes,
            about={
                "autoencoder": about(config.data.model_dump(mode="json"), config.train.model_dump(mode="json"), state)
            },
        ),
        autoencoder=autoencoder,
        scaling=Scaling.from_factor(autoencoder.latent_channels, 1.0),
    )
    model.save(folder.model)


def save_diffusion(
    model: LatentDiffusion,
    networks: ConditionalDenoiser,
    config: DiffusionRun,
    folder: RunFolder,
    state: TrainState,
    place: Path | None = None,
) -> None:
    """Writes both stages to the run's model folder, or to another `place`."""
    facts = about(config.data.model_dump(mode="json"), config.train.model_dump(mode="json"), state)
    described = model.config.model_copy(update={"about": {**model.config.about, "diffusion": facts}})
    trained = with_networks(model, networks)
    replace(trained, config=described).save(place or folder.model)


def save_student(
    student: LatentDiffusion,
    networks: ConditionalDenoiser,
    config: FewStepRun,
    folder: RunFolder,
    state: TrainState,
) -> None:
    """Writes the student with averaged weights; its teacher's training stays on record."""
    facts = about(config.data.model_dump(mode="json"), config.train.model_dump(mode="json"), state)
    described = student.config.model_copy(update={"about": {**student.config.about, "student": facts}})
    replace(with_networks(student, networks), config=described).save(folder.model)


def save_classifier(
    classifier: LatentClassifier, network: NoisyClassifier, config: ClassifierRun, folder: RunFolder, state: TrainState
) -> None:
    """Writes the classifier with averaged weights."""
    facts = about(config.data.model_dump(mode="json"), config.train.model_dump(mode="json"), state)
    described = classifier.config.model_copy(update={"about": facts})
    LatentClassifier(described, network, classifier.schedule).save(folder.model)


def save_transformer(
    model: CodeModel, networks: ConditionalTransformer, config: TransformerRun, folder: RunFolder, state: TrainState
) -> None:
    """Writes the model folder of the averaged transformer, with its first stage."""
    facts = about(config.data.model_dump(mode="json"), config.train.model_dump(mode="json"), state)
    described = model.config.model_copy(update={"about": {**model.config.about, "transformer": facts}})
    replace(with_code_networks(model, networks), config=described).save(folder.model)


def about(data: dict[str, Any], train: dict[str, Any], state: TrainState) -> dict[str, Any]:
    """The training's record in a model folder."""
    return {
        "sfumato": __version__,
        "steps": state.step,
        "images": state.images,
        "hours": round(state.seconds / 3600, 3),
        "skipped": state.skipped,
        "seed": train["seed"],
        "data": {name: value for name, value in data.items() if name in DESCRIBED},
    }
