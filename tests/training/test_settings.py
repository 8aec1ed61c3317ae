"""The settings of trainings are declared once: who has one in common overrides its default, not its type or range."""

import ast
from pathlib import Path

import pytest
from pydantic import BaseModel

from sfumato.cli.schema_flags import schema_fields
from sfumato.config import parse, to_yaml
from sfumato.training import settings
from sfumato.training.autoencoder_run import AutoencoderTraining
from sfumato.training.classifier import ClassifierTraining
from sfumato.training.diffusion_run import DiffusionTraining
from sfumato.training.distillation import Distillation
from sfumato.training.few_steps import FewStepTraining
from sfumato.training.joint_run import JointTraining
from sfumato.training.settings import LoopSettings, RunSettings
from sfumato.training.transformer import TransformerTraining

RUNS: list[type[RunSettings]] = [
    AutoencoderTraining,
    ClassifierTraining,
    DiffusionTraining,
    FewStepTraining,
    JointTraining,
    TransformerTraining,
]
ALL: list[type[LoopSettings]] = [*RUNS, Distillation]


@pytest.mark.parametrize("training", ALL)
def test_a_setting_in_common_has_one_type_and_range(training: type[BaseModel]) -> None:
    for base in training.__mro__[1:]:
        for name, field in (base.model_fields if issubclass(base, BaseModel) else {}).items():
            own = training.model_fields[name]
            assert (own.annotation, own.metadata) == (field.annotation, field.metadata), name


def test_no_class_beside_them_declares_a_setting_of_all_runs() -> None:
    names = set(RunSettings.model_fields) - {"steps", "precision", "seed", "optimiser", "batch"}  # of other things, too
    for path in Path(settings.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name not in {each.__name__ for each in ALL}:
                own = {ast.unparse(one.target) for one in node.body if isinstance(one, ast.AnnAssign) and one.value}
                assert path.stem == "settings" or not own & names, f"{path.name}: {node.name}"


@pytest.mark.parametrize("training", ALL)
def test_the_command_line_reads_the_same_from_the_source(training: type[BaseModel]) -> None:
    read = schema_fields(f"{training.__module__.removeprefix('sfumato.')}:{training.__name__}")
    assert set(training.model_fields) <= set(read)
    for name in ("steps", "batch", "ema_decay", "log_every", "workers", "max_skipped"):
        field = training.model_fields[name]
        limits = {sign: getattr(rule, sign) for rule in field.metadata for sign in ("ge", "lt") if hasattr(rule, sign)}
        assert (read[name].default, read[name].limits) == (field.default, limits), name
        assert read[name].annotation == field.annotation.__name__, name  # type: ignore[union-attr]  # int or float
    assert read["ema_decay"].help == "Decay of the averaged weights, which are exported."


def test_settings_are_read_in_any_order() -> None:
    """As runs of earlier versions have them in `config.yaml`."""
    stored = JointTraining(steps=7, draws=3, part_dropout={"text": 0.5}, track="none").model_dump(mode="json")
    turned = {name: stored[name] for name in reversed(stored)}
    assert to_yaml(parse(turned, JointTraining, "stored")) == to_yaml(parse(stored, JointTraining, "stored"))
