"""Distilling students: resuming bit for bit, what they learn from, and teachers that cannot be distilled."""

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from command_line import Command
from runs import Hooks, Images, assert_same_tensors, first_model, interrupt, latents_of, logged, saved, second_run
from sfumato.cli.real_images import opened_data
from sfumato.conditioning.condition import Condition
from sfumato.config import read_source
from sfumato.data.toyworld.vocabulary import COLOURS
from sfumato.diffusion.flow_map import Path as FlowPath
from sfumato.diffusion.flow_map import mapped
from sfumato.errors import UserError
from sfumato.model import LatentDiffusion, ModelConfig, build, pixel_space
from sfumato.model_folder import load
from sfumato.pipeline.denoise import StudentNetwork
from sfumato.rng import generator
from sfumato.training.few_steps import FewStepRun, check_conditions, student_of, train_few_steps
from sfumato.training.run import RunFolder
from sfumato.training.second_stage import build_model
from sfumato.training.start import started
from sfumato.training.state import TrainState
from sfumato.training.teaching import (
    AtNoisedLatents,
    Consistency,
    Lesson,
    MeanFlow,
    Noised,
    Teacher,
    Teaching,
    Trajectories,
)

FLOW = ("schedule={kind: flow}", "objective.prediction=flow")


def teacher_of(cache: Path, *overrides: str) -> LatentDiffusion:
    """An untrained model of the latents, none of whose layers is zero."""
    first = first_model()
    made = build_model(second_run(*overrides), first, latents_of(first, cache))
    g = torch.Generator().manual_seed(1)
    assert made.second is not None
    for part in (made.second.denoiser, made.second.conditioner):
        for parameter in () if part is None else part.parameters():
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=g)
            parameter.requires_grad_(False)
    made.second.denoiser.eval()
    return made


def run(**changes: Any) -> FewStepRun:
    train = {"steps": 4, "batch": 2, "precision": "float32", "log_every": 1, "preview_every": 1, "save_every": 2}
    return FewStepRun.model_validate(
        {
            "teacher": "teacher",
            "data": {"kind": "folder", "path": "images", "size": 16},
            "teaching": {"solver_steps": 3, "pairs": 2},
            **changes,
            "train": {**train, "workers": 0, **changes.get("train", {})},
        }
    )


def train(path: Path, config: FewStepRun, cache: Path, hooks: Hooks | None = None) -> TrainState:
    hooks = hooks or Hooks()
    torch.seed()
    teacher = teacher_of(cache, *FLOW)
    folder = RunFolder(path)
    folder.claim(config)
    latents = latents_of(teacher, cache)
    return train_few_steps(config, teacher, student_of(teacher, config), latents, folder, hooks.preview, hooks.export)


@pytest.mark.parametrize("method", ["trajectories", "mean-flow", "consistency"])
def test_an_interrupted_distillation_goes_on_bit_for_bit(tmp_path: Path, method: str) -> None:
    config = run(method=method, train={"accumulate": 2 if method == "mean-flow" else 1})
    train(tmp_path / "straight", config, tmp_path / "cache")
    hooks = Hooks({2: interrupt})
    assert train(tmp_path / "stopped", config, tmp_path / "cache", hooks).stopped_by
    assert train(tmp_path / "stopped", config, tmp_path / "cache").step == 4
    (one, numbers), (other, others) = saved(tmp_path / "straight"), saved(tmp_path / "stopped")
    assert_same_tensors(one, other)
    assert numbers == others
    assert logged(tmp_path / "straight") == logged(tmp_path / "stopped")
    changed = sum(
        bool((one[name] != one[name.replace("denoiser", "ema", 1)]).any()) for name in one if "flow_map" in name
    )
    assert changed, "the new layers are trained"
    assert not any("conditioner" in name for name in one), "the conditioner stays the teacher's"


def test_another_teacher_does_not_go_on_with_the_run(tmp_path: Path) -> None:
    train(tmp_path / "run", run(), tmp_path / "cache")
    teacher = teacher_of(tmp_path / "cache", *FLOW, "train.seed=1")
    folder, hooks = RunFolder(tmp_path / "run"), Hooks()
    folder.claim(run(train={"steps": 6}))
    with pytest.raises(UserError, match="was trained on something else"):
        train_few_steps(
            run(train={"steps": 6}),
            teacher,
            student_of(teacher, run()),
            latents_of(teacher, tmp_path / "cache"),
            folder,
            hooks.preview,
            hooks.export,
        )


def lessons(cache: Path, made: type[Trajectories] | type[AtNoisedLatents], *overrides: str, **teaching: Any) -> Any:
    teacher = teacher_of(cache, *overrides)
    student = student_of(teacher, run())
    assert student.second is not None
    assert student.second.config.student is not None
    network = student.second.denoiser.eval().requires_grad_(True)
    path = FlowPath(student.second.schedule, student.second.config.prediction)
    packed = Teacher(teacher, student.second.config.student, "float32")
    return made(Teaching(**teaching), packed, StudentNetwork(network, path), "float32")


@pytest.mark.parametrize("overrides", [FLOW, ("objective.prediction=v",), ()], ids=str)
def test_trajectories_lead_from_noise_to_the_teachers_samples(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    """Short steps of the teacher's velocity follow them, on any schedule and for any prediction."""
    made = lessons(tmp_path, Trajectories, *overrides, solver_steps=40)
    noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    given = made.teacher.lesson({"text": ["red flat", "blue round"]}, noise, 0.0, lambda name: generator(0, name))
    points = made.teacher.trajectories(noise, given, made.grid)
    assert points.shape == (41, 2, 3, 8, 8)
    assert torch.equal(points[0], noise)
    path, (i, j) = made.student.path, (20, 21)
    z_i, z_j = (points[k] / path.length(made.grid[k]).float() for k in (i, j))
    v = made.teacher.velocity(points[i], made.grid[i].expand(2), given)
    moved = mapped(z_i, path.of_time(made.grid[i]), path.of_time(made.grid[j]), v)
    assert (moved - z_j).norm() < 0.15 * (z_i - z_j).norm()


def test_pairs_begin_anywhere_and_often_end_at_the_image(tmp_path: Path) -> None:
    made = lessons(tmp_path, Trajectories, *FLOW, solver_steps=8, pairs=16)
    i, j = made.pairs(200, lambda name: generator(0, name))
    assert bool((i < j).all())
    assert set(i.tolist()) == set(range(8))
    assert set(j.tolist()) == set(range(1, 9))
    assert 0.5 < float((j == 8).float().mean()) < 0.75
    assert float((i == 0).float().mean()) > 0.25


def test_times_of_the_mean_flow(tmp_path: Path) -> None:
    for overrides in (FLOW, ("objective.prediction=v",)):
        made = lessons(tmp_path, MeanFlow, *overrides)
        t, r = made.times(400, lambda name: generator(0, name))
        path = made.student.path
        assert bool((r <= t).all())
        assert 0.45 < float((r == t).double().mean()) < 0.55
        assert 0.2 < float((r == 0).double().mean()) < 0.3
        assert 0.08 < float((t == path.noisiest).double().mean()) < 0.2
        assert path.first <= float(t.min())


def test_consistency_composes_the_teachers_step_with_the_students_map(tmp_path: Path) -> None:
    """The loss of a student that is still its teacher, by hand: one step of the teacher where m reaches r, and none
    where r = t."""
    made = lessons(tmp_path, Consistency, *FLOW, nearness=8)
    student, g = made.student, torch.Generator().manual_seed(3)
    z_t, v = torch.randn(2, 4, 3, 8, 8, generator=g).unbind()
    t, r = torch.tensor([[0.9, 0.5, 0.6, 0.8], [0.0, 0.2, 0.59, 0.8]], dtype=torch.float64)
    given = made.teacher.lesson({"text": ["red flat"] * 4}, z_t, 0.0, lambda name: generator(0, name))
    middle = made.between(t, r)
    torch.testing.assert_close(middle[0], 0.9 * (1 - (1 + 8 * torch.sigmoid(torch.tensor(-0.9).double())) / 8))
    assert middle[1] == pytest.approx(0.5 * (1 - (1 + 8 / (1 + 2.718281828**0.5)) / 8), abs=1e-6)
    assert middle.tolist()[2:] == [0.59, 0.8]
    losses = made.loss(Noised(z_t, t, r, v, given))
    losses.sum().backward()
    assert all(
        bool(parameter.grad.isfinite().all())
        for parameter in student.denoiser.parameters()
        if parameter.grad is not None
    )
    with torch.no_grad():
        u = made.mean_velocity(z_t, t, r, given)
        z_m = z_t - (t - middle).float()[:, None, None, None] * v
        rest = made.mean_velocity(z_m, middle, r, given)
    a = ((t - middle) / (t - r)).nan_to_num(1.0).float()[:, None, None, None]
    error = ((u - a * v - (1 - a) * rest) / a).square().flatten(1).mean(1)
    torch.testing.assert_close(losses.detach(), (error + 0.05**2).sqrt() - 0.05, rtol=1e-4, atol=1e-5)


def test_the_teacher_of_the_mean_flow_is_guided(tmp_path: Path) -> None:
    teacher = lessons(tmp_path, MeanFlow, *FLOW).teacher
    x_t = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    given = teacher.lesson({"text": ["red flat", "blue round"]}, x_t, 0.0, lambda name: generator(0, name))
    assert bool(((given.scale >= 1) & (given.scale <= 8)).all())
    time = torch.tensor([0.9, 0.4], dtype=torch.float64)

    def velocity(scale: float) -> torch.Tensor:
        return teacher.velocity(x_t, time, Lesson(given.condition, given.null, torch.full((2,), scale)))

    one, two, three = velocity(1.0), velocity(2.0), velocity(3.0)
    assert not torch.allclose(one, two, atol=1e-3)
    torch.testing.assert_close(three - two, two - one, rtol=1e-3, atol=1e-4)
    alone = teacher.velocity(x_t, time, Lesson(given.condition, None, torch.ones(2)))
    torch.testing.assert_close(one, alone, rtol=1e-3, atol=1e-4)
    dropped = teacher.lesson({"text": ["red flat", "blue round"]}, x_t, 1.0, lambda name: generator(0, name))
    assert torch.equal(dropped.scale, torch.ones(2))
    assert isinstance(dropped.condition, Condition)


def test_what_cannot_be_distilled_is_refused(tmp_path: Path) -> None:
    student = student_of(tiny.model(), run())
    student.save(tmp_path / "student")
    with pytest.raises(UserError, match="is a student already: distil its teacher, the model"):
        student_of(student, run())
    with pytest.raises(UserError, match="autoencoder only"):
        student_of(first_model(), run())
    with pytest.raises(UserError, match="'eps' does not determine x0"):
        student_of(tiny.model("diffusion.prediction=eps", "diffusion.schedule={kind: flow}"), run())
    with pytest.raises(UserError, match=r"is a student.*distil it again"):
        started(tmp_path / "student")
    with pytest.raises(UserError, match=r"denoiser\.flow_map is for students"):
        second_run("denoiser.flow_map=true")
    teacher = tiny.model()

    with pytest.raises(UserError, match="conditioned on text, but the data has the fields label"):
        check_conditions(teacher, Images(fields=("label",)))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="trained on round, square"):
        check_conditions(tiny.model(tiny.BY_CLASS), Images())  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, command: Command) -> None:
    """From a model folder and the toy world to images; wrong use is one sentence and leaves nothing."""
    tiny.model("image_size=[32, 32]").save(tmp_path / "model")
    model, out, again = tmp_path / "model", tmp_path / "student", tmp_path / "again"
    small = ["train.batch=2", "teaching.solver_steps=2", "teaching.pairs=2", "data.length=8", "train.workers=0"]
    words = ["distill", model, "--out", out, "--data", "toy", *small]
    for wrong, message in (
        (["distill", model, "--out", out], "is a model without its run"),
        ([*words, "--steps", "2", "--minutes", "1"], "--minutes and --steps both set"),
        ([*words, "--steps", "2", "method=guess"], "method"),
        ([*words, "--steps", "2", "low=9"], "low 9 is above high 8"),
    ):
        outcome = command(*wrong)
        assert outcome.code == 2
        assert message in outcome.err
        assert len(outcome.err.splitlines()) == 1
    assert not out.exists()
    outcome = command(*words, "--steps", "2", "train.optimiser.warmup_steps=1")
    assert outcome.code == 0, outcome.err
    assert "method: muon" in (out / "config.yaml").read_text(), "the other settings of the optimiser stay"
    assert "to be sampled with --steps 1 to 8: " in outcome.out
    assert load(out).config.about["student"]["steps"] == 2
    sampled = command("sample", out, "a red circle", "-n", "1", "--steps", "1", "--out", tmp_path / "images")
    assert "sampler: flow-map, trailing grid, 1 step" in sampled.out
    described = command("info", out).out
    assert "student of" in described
    assert "4-step image" in described
    assert "is a student already" in command("distill", out, "--out", again, "--data", "toy").err
    assert "cannot be exported" in command("export", out, tmp_path / "exported", "--format", "original").err
    assert not again.exists()
    assert not (tmp_path / "exported").exists()


def test_a_model_of_the_toy_world_brings_its_world(tmp_path: Path, command: Command) -> None:
    """zoo:toy knows a part of the words: it is distilled, and evaluated, with these alone."""
    small = ["train.batch=1", "teaching.solver_steps=2", "teaching.pairs=1", "data.length=4", "train.workers=0"]
    outcome = command("distill", "zoo:toy", "--out", tmp_path, "--steps", "1", "train.optimiser.warmup_steps=1", *small)
    assert outcome.code == 0, outcome.err
    data = read_source(str(tmp_path / "config.yaml"))["data"]
    assert data["vocabulary"] == read_source("zoo:toy/small-text")["data"]["vocabulary"] | {
        "colours": list(COLOURS),
        "sizes": ["small", "large"],
    }
    evaluated = opened_data("toy:held-out", (32, 32), False, "white", load("zoo:toy"))
    texts = {str(evaluated[index].fields["text"]) for index in range(40)}
    assert not any(
        word in text for text in texts for word in ("striped", "dotted", "cross", "diamond", "three", "four")
    )
    assert load(tmp_path).config.about["student"]["data"]["vocabulary"] == data["vocabulary"]


def test_a_tiny_decoder_is_distilled_along(tmp_path: Path, command: Command) -> None:
    """A first stage that can have none is refused before the student is trained."""
    (tiny.model("image_size=[32, 32]")).save(tmp_path / "model")
    small = ["train.batch=2", "teaching.solver_steps=2", "teaching.pairs=2", "data.length=8", "train.workers=0"]
    words = ("--data", "toy", "--minutes", "0.005", "--with-decoder", *small)
    outcome = command("distill", tmp_path / "model", "--out", tmp_path / "student", *words)
    assert outcome.code == 0, outcome.err
    assert "tiny decoder: " in outcome.out
    assert load(tmp_path / "student").tiny is not None
    pixels = pixel_space((32, 32)).config.autoencoder
    denoiser = {"channels": 32, "channel_multipliers": [1], "attention_factors": []}
    diffusion = {"denoiser": denoiser, "schedule": {"kind": "flow"}, "prediction": "flow"}
    described = {"autoencoder": pixels.model_dump(), "image_size": (32, 32), "diffusion": diffusion}
    build(ModelConfig.model_validate(described)).save(tmp_path / "pixels")
    refused = command("distill", tmp_path / "pixels", "--out", tmp_path / "none", *words)
    assert refused.code == 2
    assert "no decoder to distil" in refused.err
    assert not (tmp_path / "none").exists()
