"""`sfumato estimate`: what it prints before anything is measured, what it predicts, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from command_line import Command, Runs
from sfumato.config import read_source
from sfumato.estimate.memory import saved_for_backward
from sfumato.estimate.report import affordable_steps, equivalents
from sfumato.sampling.table import SAMPLERS


def estimate(command: Command, *arguments: object) -> dict[str, Any]:
    done = command("estimate", *arguments, "--json")
    assert done.code == 0, done.err
    estimated: dict[str, Any] = json.loads(done.out)
    return estimated


def test_the_papers_class_conditional_model_is_its_271_days(command: Command) -> None:
    """Table 18 of the paper; the width, batch and steps are those of its published configuration."""
    estimated = estimate(command, "zoo:ldm/cin256-v2", "--no-measure")
    assert estimated["equivalents"]["v100_days"] == pytest.approx(271, rel=0.02)
    assert estimated["parameters"]["denoiser"] == pytest.approx(400.9e6, rel=0.002)
    assert estimated["parameters"]["autoencoder"] == pytest.approx(55.3e6, rel=0.002)
    assert {p["sampler"] for p in estimated["sample_costs"]} == set(SAMPLERS)
    assert estimated["memory"]["optimiser"] == 2 * estimated["memory"]["gradients"]
    assert estimated["foreseen"] is None


def test_both_stages_are_measured_and_foreseen(command: Command, runs: Runs, tmp_path: Path) -> None:
    estimated = estimate(
        command, runs.first, "--steps", 2, "train.steps=50", "train.preview_every=10", "train.save_every=25"
    )
    forecast, (phase,) = estimated["foreseen"], estimated["phases"]
    assert forecast["training"] == pytest.approx(50 * phase["timing"]["step"])
    assert forecast["previews"] == pytest.approx(6 * phase["timing"]["preview"])
    assert forecast["saving"] == pytest.approx(3 * phase["timing"]["save"])
    assert 0 < phase["utilisation"] < 1
    assert estimated["images"] == 64
    estimated = estimate(command, runs.second, "--autoencoder", runs.autoencoder, "--steps", 2, "train.steps=50")
    assert estimated["foreseen"]["encoding"] == pytest.approx(64 * estimated["encoding_seconds"])
    assert all(image["seconds"] > 0 for image in estimated["sample_costs"])
    shown = command("estimate", runs.second, "--autoencoder", runs.first, "--no-measure").out
    assert "V100 days" in shown
    assert "dpmpp-2m" in shown


def test_minutes_buy_as_many_steps_as_they_are_long(command: Command, runs: Runs) -> None:
    given = ("train.minutes=5", "train.preview_every=10", "train.save_every=25")
    estimated = estimate(command, runs.first, "--steps", 2, *given)
    (phase,) = estimated["phases"]
    assert estimated["steps"] == phase["steps"] == math.ceil(300 / phase["timing"]["step"])
    assert estimated["foreseen"]["training"] == 300
    assert estimated["foreseen"]["previews"] == pytest.approx(
        (estimated["steps"] // 10 + 1) * phase["timing"]["preview"]
    )
    assert estimated["operations"] == estimated["steps"] * estimated["samples"] * phase["work"]["total"]
    unknown = estimate(command, runs.second, "--autoencoder", runs.first, "--no-measure", *given)
    assert (unknown["steps"], unknown["operations"], unknown["equivalents"]) == (None, None, None)
    shown = command("estimate", runs.first, "--no-measure", *given).out
    assert "5 minutes; the number of steps depends on the machine" in shown
    assert "V100" not in shown
    # a line-up that the time does not reach has no step; the step in which the time ends is finished
    assert affordable_steps([3, 2, 10**9], [1.0, 2.0, 4.0], 8.0) == [3, 2, 1]
    assert affordable_steps([3, 2, 10**9], [1.0, 2.0, 4.0], 6.5) == [3, 2, 0]
    assert affordable_steps([3, 2, 10**9], [1.0, 2.0, 4.0], 15.0) == [3, 2, 2]
    # train.step_limits: of all together, in their order
    assert affordable_steps([3, 2, 10**9], [1.0, 2.0, 4.0], 15.0, (1, 4)) == [3, 1, 0]
    assert affordable_steps([3, 2, 10**9], [1.0, 2.0, 4.0], 1.0, (4, 9)) == [3, 1, 0]
    assert affordable_steps([3, 2, 10**9], [1.0, 2.0, 4.0], 15.0, (4, 9)) == [3, 2, 2]
    limited = estimate(command, runs.first, "--steps", 2, *given, "train.step_limits=[1,7]")
    assert limited["steps"] == 7
    assert limited["foreseen"]["training"] == pytest.approx(7 * limited["phases"][0]["timing"]["step"])


def test_what_cannot_be_accounted_for(command: Command, runs: Runs, tmp_path: Path) -> None:
    estimated = command("estimate", runs.second, "--no-measure")
    assert estimated.code == 2
    assert "--autoencoder is missing" in estimated.err
    assert "leave it out" in command("estimate", runs.first, "--autoencoder", "pixels").err
    (tmp_path / "a").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "0.png")
    long = command("estimate", "zoo:ldm/cin256-v2", "--data", tmp_path)
    assert "too long to measure: give --no-measure" in long.err


SMALL = ("train.batch=1", "denoiser.channels=32", "denoiser.channel_multipliers=[1]", "--sampling-steps", 1)


@pytest.mark.parametrize("task", ["semantic", "layout", "super-res", "inpainting"])
def test_conditional_models_are_timed_on_the_conditions_of_their_data(command: Command, task: str) -> None:
    estimated = estimate(command, f"zoo:toy/{task}", *SMALL, "data.length=70", "train.steps=10", "--steps", 2)
    (phase,) = estimated["phases"]
    assert estimated["foreseen"]["training"] == pytest.approx(10 * phase["timing"]["step"])
    assert estimated["foreseen"]["encoding"] == pytest.approx(70 * estimated["encoding_seconds"])
    assert phase["timing"]["preview"] > 0


def test_masks_are_sampled_for_synthetic_images_too_and_encoded_each(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    raw = read_source("zoo:toy/inpainting") | {"data": {"kind": "folder", "size": 64}}
    config.write_text(yaml.safe_dump(raw))
    given = ("--autoencoder", "zoo:toy/autoencoder", "conditions.mask.variants=2", *SMALL, "--steps", 2)
    estimated = estimate(command, config, *given)
    assert estimated["phases"][0]["timing"]["step"] > 0
    once = estimate(command, "zoo:toy/autoencoder", "--no-measure")["encoding_operations"]
    assert estimated["encoding_operations"] == 3 * once, "each image, and with two holes"


def test_stage_2_may_have_another_size_than_its_first_stage(command: Command) -> None:
    """The toy world's small recipes are of 32 pixels, its first stage of 64; the small one is found by its name."""
    given = ("zoo:toy/small-text", *SMALL, "data.length=70", "--steps", 2)
    other = estimate(command, *given, "--autoencoder", "zoo:toy/autoencoder")
    own = estimate(command, *given)
    assert (other["image_size"], other["latent"]) == ([32, 32], [3, 8, 8])
    assert (own["image_size"], own["latent"]) == ([32, 32], [3, 8, 8])
    assert own["parameters"]["autoencoder"] < other["parameters"]["autoencoder"] / 2
    assert own["phases"][0]["timing"]["step"] > 0


def test_maps_cannot_be_made_up(command: Command, tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    raw = read_source("zoo:toy/semantic") | {"data": {"kind": "folder", "size": 64}}
    raw["conditioner"]["classes"] = 5
    config.write_text(yaml.safe_dump(raw))
    done = command("estimate", config, "--autoencoder", "zoo:toy/autoencoder", *SMALL, "--json")
    assert done.code == 0, done.err
    assert "no times, for conditions.map cannot be synthesised: give the images by --data" in done.err
    assert json.loads(done.out)["foreseen"] is None


def test_equivalents_are_the_papers_conversion() -> None:
    there = equivalents(1e18)
    assert there.v100_days / there.a100_days == pytest.approx(2.2)
    assert there.h100_kwh == pytest.approx(0.7 * there.h100_hours)


def test_kept_memory_is_counted_once_and_without_weights() -> None:
    import torch

    layer, x = torch.nn.Linear(10, 20), torch.ones(5, 10)

    def step() -> object:
        h = layer(x)  # keeps x
        return h.sigmoid() + x.sum() * h.sigmoid()  # keeps each sigmoid's result, and factors

    first = saved_for_backward(lambda: layer(x), [layer])
    assert first == 4 * 5 * 10
    assert saved_for_backward(step, [layer]) == 4 * (5 * 10 + 2 * 5 * 20 + 1)


def test_processes_share_what_is_trained_and_wait_for_the_network(command: Command) -> None:
    """The paper's text model on cards of 24 GB: it fits in parts, not whole."""
    given = ("zoo:ldm/txt2img-1p4B", "--no-measure", "--processes", 64, "train.batch=4", "train.checkpointing=true")
    parts, whole = (estimate(command, *given, f"train.shard={how}")["processes"] for how in ("full", "none"))
    assert parts["memory"]["total"] < 8e9 < 24e9 < whole["memory"]["total"]
    assert parts["memory"]["optimiser"] == pytest.approx(whole["memory"]["optimiser"] / 64, rel=1e-6)
    assert parts["bytes_a_step"] == pytest.approx(1.5 * whole["bytes_a_step"])
    assert whole["bytes_a_step"] == pytest.approx(2 * 63 / 64 * 4 * 1.415e9, rel=1e-3)
    assert (parts["hosts"], parts["samples"]) == (8, 256)
    efficiencies = [each["efficiency"] for each in parts["same_batch"]]
    assert efficiencies == sorted(efficiencies, reverse=True)
    done = command("estimate", "zoo:ldm/kl-f8", "--no-measure", "--processes", 2)
    assert done.code == 2
    assert "--processes estimates stage 2" in done.err
