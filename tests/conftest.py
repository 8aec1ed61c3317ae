"""Tiny trained models that the tests of the command line share, and a way to run commands."""
# ruff: noqa: E402 (imports below come after the first statement)

import gc

gc.disable()  # until all tests are collected: nearly everything that imports make stays

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sfumato
from command_line import CLASS, TEXT, Command, Outcome, Runs
from forks import Forks
from sfumato.cli import main
from sfumato.engine import precision
from sfumato.training import previews

torch.set_num_threads(1)  # sums of two threads differ from one's in the last bit; processes that tests start have one

FIRST_STAGE = """\
model: {channels: 32, channel_multipliers: [1, 1, 1], blocks_per_level: 1, latent_channels: 4, attention: none}
data: {kind: toy, size: 32, length: 64}
loss: {pixel: l1, perceptual: {kind: none}, adversarial: {weight: 0}}
train: {steps: 2, batch: 4, workers: 0, precision: float32, preview_images: 4, save_every: 4, preview_every: 4}
"""

SECOND_STAGE = """\
denoiser: {channels: 32, channel_multipliers: [1, 1], blocks_per_level: 1, attention_factors: [2]}
schedule: {kind: scaled-linear}
data: {kind: toy, length: 64}
train: {steps: 4, batch: 4, workers: 0, precision: float32, save_every: 4, preview_every: 8}
"""


def pytest_collection_finish() -> None:
    """Freezes the modules imported by now, so that the garbage collector does not scan them for every test."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _precision_is_asked_for() -> Iterator[None]:
    """An `auto` precision is float32 in the tests, whatever the processor: a test that means bfloat16 asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_processor_has_bfloat16", lambda: False)
        yield


@pytest.fixture(scope="session", autouse=True)
def _previews_are_short() -> Iterator[None]:
    """Trainings preview at their end, if not before; none of their other numbers depends on the steps of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(previews, "PREVIEW_STEPS", 2)
        yield


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs `sfumato` with the given arguments, in this process."""

    def run(*arguments: object) -> Outcome:
        capsys.readouterr()
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        return Outcome(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """Starts processes that begin with sfumato imported."""
    server = Forks(tmp_path_factory.mktemp("forks"))
    yield server
    server.end()


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """The models, trained once; tests must leave them as they are."""
    root = tmp_path_factory.mktemp("runs")
    first, second = root / "first.yaml", root / "second.yaml"
    first.write_text(FIRST_STAGE)
    second.write_text(SECOND_STAGE)
    names = ("autoencoder", "text", "label", "undropped", "plain")
    made = Runs(root, first, second, *(root / name for name in names))
    _train("autoencoder", first, "--out", made.autoencoder)
    common = ("diffusion", second, "--autoencoder", made.autoencoder, "--cache", root / "cache", "--out")
    _train(*common, made.text, TEXT)
    _train(*common, made.label, CLASS)
    _train(*common, made.undropped, TEXT, "train.condition_dropout=0")
    _train(*common, made.plain, "train.power_averages={snapshot_every: 1}")
    for run in (made.text, made.label, made.undropped):
        _shake(run)
    return made


def _shake(run: Path) -> None:
    """So few steps leave the layers that begin at zero nearly there: noise makes the condition felt."""
    model = sfumato.load(run)
    assert model.second is not None
    noise = torch.Generator().manual_seed(0)
    for parameter in model.second.denoiser.parameters():
        if parameter.dim() > 1:
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise))
    model.save(run / "model")


def _train(*arguments: object) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["train", *(str(argument) for argument in arguments)])
    assert not stopped.value.code, f"training failed: {arguments}"
