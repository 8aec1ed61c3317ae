"""Trainings whose networks every process has whole say so where a user asks for parts."""

import pytest
from pydantic import ValidationError

from sfumato.training.autoencoder_run import AutoencoderTraining
from sfumato.training.classifier import ClassifierTraining
from sfumato.training.few_steps import FewStepTraining
from sfumato.training.joint_run import JointTraining
from sfumato.training.settings import WholeNetworks
from sfumato.training.transformer import TransformerTraining


@pytest.mark.parametrize(
    "training", [AutoencoderTraining, ClassifierTraining, FewStepTraining, JointTraining, TransformerTraining]
)
def test_parts_are_refused_with_the_training_that_has_them(training: type[WholeNetworks]) -> None:
    with pytest.raises(ValidationError, match=r"`sfumato train diffusion` alone.*: leave it out"):
        training.model_validate({"shard": "full"})
