"""The benchmark's two sides compute the same, its numbers become tables, and what it asks for exists."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from command_line import Command
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.conditioning.condition import Condition
from sfumato.denoiser.unet import UNetConfig

ROOT = Path(__file__).parents[1]
UNET = UNetConfig(channels=32, channel_multipliers=(1, 2), blocks_per_level=1, attention_factors=(2,), head_channels=16)
AUTOENCODER = AutoencoderConfig(channels=32, channel_multipliers=(1, 1), blocks_per_level=1)


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def differences(candidates: Mapping[str, Callable[[], Tensor]]) -> dict[str, float]:
    """As interleave finds them, with two calls each."""
    second = {name: [call(), call()][1].detach() for name, call in candidates.items()}
    reference = next(iter(second.values()))
    return {name: ((out - reference).abs().max() / reference.abs().max()).item() for name, out in second.items()}


def test_network_calls_and_training_steps_agree_with_diffusers() -> None:
    from benchmarks.adversarial import first_stage_step
    from benchmarks.timing import interleave
    from benchmarks.workloads import Scope, network_call, second_stage_step

    scope = Scope(half=False)
    call = network_call(UNET, 3, True, scope, size=8)
    found = {name: timing.difference for name, timing in interleave(call.candidates, 1).items()}
    assert found.keys() > {"diffusers float32", "sfumato float32", "sfumato plain float32"}
    assert max(found.values()) < 1e-4
    assert call.flops is not None
    assert call.flops > 0
    for step in (second_stage_step(UNET, 3, 8, True, scope), first_stage_step(32, 2, 32, scope)):
        assert step.samples in (2, 3)
        found = differences({name: step.candidates[name] for name in ("diffusers float32", "sfumato float32")})
        assert found["sfumato float32"] < 1e-3, "losses after one update"


def test_sampling_loops_from_one_noise_end_in_the_same_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.sampling_loops import OUR_STEPS, alike_images, same_steps
    from benchmarks.workloads import Scope

    from sfumato.engine.inference import PackedUNet

    scope, batches, forward = Scope(half=False), [], PackedUNet.forward
    assert differences(same_steps(UNET, 4, scope).candidates)["sfumato float32"] < 1e-3, "guidance of 7.5 on the way"

    def counted(unet: PackedUNet, x_t: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        batches.append(len(x_t))
        return forward(unet, x_t, timestep, condition)

    monkeypatch.setattr(PackedUNet, "forward", counted)
    assert alike_images(UNET, scope).candidates[f"sfumato, {OUR_STEPS} steps"]().isfinite().all()
    assert len(batches) == OUR_STEPS
    assert 0 < batches.count(2) < OUR_STEPS / 2, "guided inside of the interval only"


def test_convolutions_are_timed_beside_torchs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks import convolutions

    from sfumato.engine import native

    monkeypatch.setattr(convolutions, "SHAPES", ((2, 32, 32),))
    monkeypatch.setattr("sys.argv", ["convolutions", "--rounds", "1"])
    if native.library() is None:
        with pytest.raises(SystemExit, match="do not run here"):
            convolutions.main()
        return
    convolutions.main()
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| 2, 32, 32 | ")
    assert last.count("→") == len(convolutions.PARTS)


def test_images_and_latents_are_fed_as_their_loaders_do(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import feeding
    from benchmarks.workloads import Scope

    monkeypatch.setattr(feeding, "WORKERS", 0)
    monkeypatch.setattr(
        feeding,
        "DataLoader",
        lambda *given, **named: torch.utils.data.DataLoader(*given, batch_sampler=named["batch_sampler"]),
    )
    images = feeding.folder_batches(count=5, size=16, batch=2, batches=2, given=(24, 32))
    assert differences(images.candidates)["sfumato folder"] < 0.03, "a rounding of 255 or two"
    packed = feeding.epochs(count=6, size=16, batch=2, given=(24, 32))
    assert differences(packed.candidates)["sfumato shards"] < 1e-12, "the same images in another order"
    latents = feeding.latent_batches(AUTOENCODER, 4, 16, 2, 2, Scope(half=False))
    assert differences(latents.candidates)["sfumato cache"] < 2e-3, "the cache keeps float16"


def test_a_image_of_a_process_is_the_image_of_the_other(tmp_path: Path, command: Command) -> None:
    from benchmarks import diffusers_image
    from benchmarks.processes import prepare, read, sample_arguments

    prepare(tmp_path, UNET, AUTOENCODER, 16)
    diffusers_image.main(tmp_path, tmp_path / "theirs.png", 3, torch.float32)
    done = command(*sample_arguments(tmp_path, tmp_path / "ours", 3, "float32"))
    assert done.code == 0, done.err
    ours, theirs = read(next((tmp_path / "ours").glob("*.png"))), read(tmp_path / "theirs.png")
    assert theirs.std() > 5
    assert (ours - theirs).abs().max() <= 1


def test_added_memory_is_what_the_call_held() -> None:
    from benchmarks.memory import added_peak

    def call() -> Tensor:
        return torch.ones(64 * 2**20 // 4).sum()

    peak = added_peak(call)
    assert peak is None or 60 * 2**20 < peak < 80 * 2**20


def test_results_become_tables() -> None:
    from benchmarks.page import Results, markdown
    from benchmarks.timing import Timing
    from benchmarks.workloads import Workload

    about = {"command": "python -m benchmarks", "machine": "a processor", "threads": 1, "torch": "2", "diffusers": "0"}
    results = Results({**about, "kernels": "native kernels: on"}, {"float32": 4e9})
    timings = {"theirs": Timing(2.0, 2.5, 3.0, 2**20, 0.0), "ours": Timing(0.5, 0.6, 0.9, None, 1e-6)}
    results.workloads["W"] = Workload({}, 8, "latents", 1e9), timings
    results.growth["by f"] = {"f = 1": timings, "f = 2": {name: Timing(0.25, 1, 1, 0, 0) for name in timings}}
    page = markdown(results)
    assert "| theirs | 2000.0 | 2500.0 | 3.00 | 4 | 1.00 | 12% | 1 | 0.0e+00 |" in page
    assert "| ours | 500.0 | 600.0 | 0.90 | 16 | 4.00 | 50% | – | 1.0e-06 |" in page
    assert "| ours | 500 (2) | 250 (1) |" in page
    record = json.loads(json.dumps(results.as_json()))
    assert record["workloads"]["W"]["candidates"]["ours"]["ratio"] == 4


def test_names_are_listed_and_unknown_ones_refused(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.__main__ import parsed

    with pytest.raises(SystemExit, match="0"):
        parsed(["--list"])
    listed = capsys.readouterr().out.splitlines()
    assert {name.split()[0] for name in listed} >= {f"W{number}" for number in range(1, 9)}
    assert parsed(["--only", "w3 DECODE"]).rounds > 1
    with pytest.raises(SystemExit, match="2"):
        parsed(["--only", "f = 4"])  # of --growth alone
    assert "--list prints them" in capsys.readouterr().err
