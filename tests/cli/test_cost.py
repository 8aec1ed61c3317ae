"""Commands that compute images say what it costs before they start, and refuse steps of hours."""

from pathlib import Path

import pytest
from PIL import Image

import tiny
from command_line import Command
from sfumato import flops
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.cli import progress
from sfumato.conditioning.condition import ConditionSpec
from sfumato.estimate import images, work
from sfumato.pipeline.request import SampleRequest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """An unconditional one, beside an image."""
    tiny.model(tiny.UNCONDITIONAL).save(tmp_path / "model")
    Image.effect_noise((24, 16), 40).convert("RGB").save(tmp_path / "x.png")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ("sample MODEL -n 2 --steps 1", "2 images of up to 16x24 .* fewer --steps or fewer images"),
        ("edit MODEL IMAGE --steps 1", "an image of 16x24 .* a smaller image, or fewer --steps"),
        ("reconstruct MODEL IMAGE", "an image of 16x24 .* give --size"),
        ("invert MODEL IMAGE --steps 1", "an image of 16x24 .* a smaller --size"),
        ("interpolate MODEL --frames 3 --steps 1", "3 images of up to 16x24 .* fewer --frames"),
    ],
)
def test_a_long_command_says_its_cost_once(
    model: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, line: str, advice: str
) -> None:
    names = {"MODEL": model, "IMAGE": tmp_path / "x.png"}
    arguments = [names.get(word, word) for word in line.split()]
    monkeypatch.setattr(images, "FEW_OPERATIONS", {"cpu": 0})
    monkeypatch.setattr(images, "arithmetic_peak", lambda device, precision: 1e6)
    done = command(*arguments, "--device", "cpu", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    (said,) = [one for one in done.err.splitlines() if "at this machine's speed" in one]
    assert all(part in said for part in advice.split(" .* ")), said


def test_a_short_command_says_nothing(model: Path, tmp_path: Path, command: Command) -> None:
    done = command("sample", model, "-n", "2", "--steps", "1", "--device", "cpu", "--out", tmp_path / "out")
    assert (done.code, done.err) == (0, "")


def test_a_step_of_hours_is_refused(model: Path, tmp_path: Path, command: Command) -> None:
    arguments = ("-n", 1, "--steps", 1, "--device", "cpu", "--size", "20000x20000", "--out", tmp_path / "out")
    done = command("sample", model, *arguments)
    assert done.code == 2
    assert "the limit on cpu is 3e+14; give a smaller --size" in done.err
    assert not (tmp_path / "out").exists()


def test_two_counts_give_the_operations_of_every_size() -> None:
    config = AutoencoderConfig(channels=32, channel_multipliers=[1, 2])
    encode, decode = images.coding(config)
    assert encode((96, 40)) == pytest.approx(flops.encode(config, (96, 40)), rel=1e-9)
    assert decode((96, 40)) == pytest.approx(flops.decode(config, (96, 40)), rel=1e-9)


def test_sampling_is_its_calls_and_the_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "FEW_OPERATIONS", {"cpu": 0})
    model = tiny.model(tiny.UNCONDITIONAL)
    assert model.second is not None
    found = images.sampling(model, SampleRequest(steps=3, sampler="ddim"), (16, 24), 5)
    about = model.config.autoencoder, model.second.config, (16, 24), ConditionSpec()
    assert found.total == pytest.approx(5 * work.image(*about, guided=False).of(3))
    half = images.sampling(model, SampleRequest(steps=4, sampler="ddim", strength=0.5), (16, 24), 1, encodes=1)
    encoding = flops.encode(model.config.autoencoder, (16, 24))
    assert half.total == pytest.approx(encoding + work.image(*about, guided=False).of(2))


def test_progress_is_shown_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "SECONDS_TO_LINE", 0.0)
    with progress.counting("sampling", 4, "steps") as advance:
        advance(1)
        advance(1)
    with progress.bars() as (_, passes):
        passes("inverting")(3, 3)
    assert "sampling: 1 of 4 steps\n" in (shown := capsys.readouterr().err)
    assert "sampling: 2 of 4 steps, " in shown
    assert "inverting: 3 of 3\n" in shown
