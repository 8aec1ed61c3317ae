"""Sampling students: the network's two more inputs, one call a step, guidance by a number, and what is refused."""

import json
from typing import Any

import pytest
import torch
from PIL import Image

import tiny
from sfumato.denoiser.flow_map import step_inputs
from sfumato.diffusion.flow_map import Path
from sfumato.engine.inference import for_inference
from sfumato.errors import UserError
from sfumato.interop.expressible import refuse_for_diffusers, refuse_for_original
from sfumato.model import LatentDiffusion
from sfumato.model_folder import load
from sfumato.pipeline.denoise import Network, StudentNetwork
from sfumato.pipeline.pipeline import sample
from sfumato.pipeline.plan import plan
from sfumato.pipeline.request import Projection, SampleRequest
from sfumato.service.registry import Registry, model_view
from sfumato.tasks.editing import edit
from sfumato.tasks.inpainting import inpaint
from sfumato.tasks.interpolation import Stop, interpolate
from sfumato.tasks.inversion import find_noise
from sfumato.tasks.requests import task_options
from sfumato.training.few_steps import FewStepRun, student_of

FLOW = ("diffusion.schedule={kind: flow}", "diffusion.prediction=flow")


def run(**changes: Any) -> FewStepRun:
    return FewStepRun.model_validate({"teacher": "teacher", "data": {"kind": "toy"}, **changes})


def student(*overrides: str, trained: bool = True) -> LatentDiffusion:
    """A student whose new layers have been moved, as by training."""
    made = student_of(tiny.model(*overrides), run())
    assert made.second is not None
    if trained:
        g = torch.Generator().manual_seed(5)
        for parameter in made.second.denoiser.flow_map.parameters():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=g)
    made.second.denoiser.eval().requires_grad_(False)
    return made


SD_LIKE = (
    "diffusion.denoiser.linear_projections=true",
    "diffusion.denoiser.heads=4",
    "diffusion.denoiser.attention_factors=[1, 2]",
    "diffusion.denoiser.transformer_depth=2",
)
"""The blocks of Stable Diffusion 2's network."""


@pytest.mark.parametrize(
    ("prediction", "overrides"), [("v", SD_LIKE), ("v", ()), ("x0", ()), ("eps", SD_LIKE), ("flow", FLOW[:1])]
)
def test_a_student_begins_as_its_teacher(prediction: str, overrides: tuple[str, ...]) -> None:
    teacher = tiny.model(f"diffusion.prediction={prediction}", *overrides)
    made = student_of(teacher, run())
    assert teacher.second is not None
    assert made.second is not None
    condition = tiny.conditions(teacher, 2, ["a red apple"] * 2)[0]
    x_t = torch.randn(2, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9, 0.3], dtype=torch.float64)
    path = Path(teacher.second.schedule, teacher.second.config.prediction)
    theirs = Network(teacher.second.denoiser, teacher.second.schedule, teacher.second.config.prediction)
    x0 = theirs.denoise(condition)(x_t, t)
    z_t = x_t / path.length(t)[:, None, None, None].float()
    velocity = (z_t - x0) / path.of_time(t)[:, None, None, None].float()
    ours = StudentNetwork(made.second.denoiser.eval(), path)
    for s, scale in ((t, 1.0), (t / 2, 3.0), (torch.zeros(2), torch.tensor([1.5, 8.0]))):
        torch.testing.assert_close(ours.velocity(x_t, t, s, scale, condition), velocity, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        timestep = torch.tensor([899.0, 299.0])
        again = made.second.denoiser(x_t, step_inputs(timestep, timestep / 2, 3.0), condition)
        assert torch.equal(again, teacher.second.denoiser(x_t, timestep, condition)), "bit for bit"


def test_a_student_of_an_unconditional_model_knows_scale_1() -> None:
    made = student(tiny.UNCONDITIONAL)
    assert made.second is not None
    known = made.second.config.student
    assert known is not None
    assert (known.low, known.high) == (1, 1)
    assert sample(made, SampleRequest(count=2)).images.shape == (2, 3, 16, 24)


def test_one_call_a_step_and_the_scale_as_an_input() -> None:
    made = student(*FLOW)
    assert made.second is not None
    inputs = []
    made.second.denoiser.register_forward_hook(lambda module, arguments, out: inputs.append(arguments[1]))
    request = SampleRequest(prompt=["a red apple"] * 2, guidance=[2.0, 5.0], seeds=[1, 1], steps=4)
    samples = sample(made, request)
    assert len(inputs) == 4
    torch.testing.assert_close(inputs[0], torch.tensor([[999.0, 749.0, 2.0], [999.0, 749.0, 5.0]]))
    torch.testing.assert_close(inputs[3][:, 1], torch.full((2,), -1.0))
    assert not torch.allclose(*samples.images, atol=1e-3), "the scale matters"
    assert samples.record.shared()["sampler"] == "flow-map"
    assert "student" in samples.plan.choice.reason
    alone = sample(made, SampleRequest(prompt="a red apple", guidance=5.0, seed=1, steps=4)).images
    torch.testing.assert_close(alone[0], samples.images[1], rtol=1e-4, atol=1e-4)
    assert len(plan(made, SampleRequest(prompt="a red apple")).times) == 5, "four steps by default"
    assert len(plan(tiny.model(), SampleRequest(prompt="a red apple")).times) == 21


@pytest.mark.parametrize("steps", [1, 3, 8])
def test_any_number_of_steps_on_any_schedule(steps: int) -> None:
    for overrides in (FLOW, ("diffusion.schedule={kind: cosine}",)):
        images = sample(student(*overrides), SampleRequest(prompt="a red apple", steps=steps)).images
        assert bool(images.isfinite().all())


def test_the_packed_student_computes_the_same() -> None:
    made = student(*FLOW)
    request = SampleRequest(prompt=["a red apple"], steps=2, seed=3)
    plain = sample(made, request).images
    assert made.second is not None
    for_inference(made.second.denoiser, torch.float32)
    torch.testing.assert_close(sample(made, request).images, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 9.0}, "guidance 9 is not one of the scales that this student was distilled for: give 1 to 8"),
        ({"guidance": 0.5}, "guidance 0.5 is not one of the scales"),
        ({"sampler": "ddim"}, "sampler 'ddim' does not suit a student"),
        ({"negative": "a flat green hill"}, "negative is not an option of a student"),
        ({"interval": (0.2, 0.8)}, "interval is not an option of a student"),
        ({"rescale": 0.5}, "rescale is not an option of a student"),
        ({"projection": Projection()}, "projection is not an option of a student"),
        ({"reuse": 2}, "reuse is not an option of a student"),
        ({"autoguide": tiny.model()}, "autoguide is not an option of a student"),
    ],
)
def test_what_a_student_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    made = student()
    with pytest.raises(UserError, match=message):
        plan(made, SampleRequest(prompt="a red apple", **options))


def test_a_student_is_no_other_models_sampler_or_guide() -> None:
    with pytest.raises(UserError, match=r"'flow-map' is for students.*sfumato distill"):
        plan(tiny.model(), SampleRequest(prompt="a red apple", sampler="flow-map"))
    with pytest.raises(UserError, match="autoguide is a student"):
        plan(tiny.model(), SampleRequest(prompt="a red apple", autoguide=student()))
    with pytest.raises(UserError, match="sampler 'ddim' does not suit a student"):
        find_noise(student(), torch.zeros(1, 3, 16, 24), "a red apple")


def test_a_student_is_not_exported() -> None:
    made = student()
    for refuse in (refuse_for_original, refuse_for_diffusers):
        with pytest.raises(UserError, match=r"a student cannot be exported.*export its teacher"):
            refuse(made.config, None)  # type: ignore[arg-type]


def test_a_student_is_saved_with_its_teachers_name(tmp_path: Any) -> None:
    teacher = tiny.model()
    made = student()
    made.save(tmp_path / "student")
    again = load(tmp_path / "student")
    assert again.second is not None
    assert again.second.config.student is not None
    assert again.second.config.student.teacher == teacher.digest
    assert again.digest == made.digest != teacher.digest
    request = SampleRequest(prompt="a red apple", steps=2)
    torch.testing.assert_close(sample(again, request).images, sample(made, request).images)


def test_the_tasks_work_with_a_student() -> None:
    made = student(*FLOW)
    image = Image.new("RGB", (24, 16), (200, 30, 30))
    mask = Image.new("L", (24, 16), 0)
    mask.paste(255, (4, 4, 14, 12))
    options = task_options(steps=4)
    (filled,) = inpaint(made, image, mask, "a red apple", options=options)
    assert filled.getpixel((23, 15)) == (200, 30, 30)
    (filled,) = inpaint(made, image, mask, "a red apple", jumps=(2, 2), options=options)
    (edited,) = edit(made, image, "a red apple", strength=0.5, options=options)
    assert edited.size == (24, 16)
    frames = interpolate(made, [Stop(0, "a red apple"), Stop(1, "two blue discs")], 3, SampleRequest(steps=2))
    assert frames.shape == (3, 3, 16, 24)


def test_the_service_describes_a_student(tmp_path: Any) -> None:
    """So that a studio offers a student's steps and scales."""
    made = student()
    made.save(tmp_path / "student")
    tiny.model().save(tmp_path / "teacher")
    found = {
        one.id: model_view(one, False, None) for one in Registry([tmp_path / "student", tmp_path / "teacher"]).list()
    }
    assert found["student"]["steps"] == 4
    assert found["student"]["student"]["high"] == 8
    assert (found["teacher"]["steps"], found["teacher"]["student"]) == (20, None)


def test_a_large_image_is_sampled_in_windows() -> None:
    """The line of each window is averaged with its neighbours'; one window of the whole is the image itself."""
    made = student(*FLOW)
    request = {"prompt": "a red apple", "steps": 2, "size": (32, 48)}
    windowed = sample(made, SampleRequest(**request, window=16)).images  # type: ignore[arg-type]
    assert windowed.shape == (1, 3, 32, 48)
    assert bool(windowed.isfinite().all())


def test_a_flow_map_belongs_to_a_student() -> None:
    with pytest.raises(UserError, match=r"denoiser\.flow_map belong together"):
        tiny.model("diffusion.denoiser.flow_map=true")


def test_one_card_at_several_numbers_of_steps(tmp_path: Any, command: Any) -> None:
    """The first number is the card's own; rows of samples have equal seeds."""
    made = student(*FLOW, "image_size=[32, 32]")
    made.save(tmp_path / "student")
    words = ("evaluate", tmp_path / "student", "toy", "--n", 8, "--reference", 8, "--metrics", "reader")
    done = command(*words, "--steps", "2,1", "--out", tmp_path / "card")
    assert done.code == 0, done.err
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert (card["sampling"]["steps"], card["sampling"]["sampler"]) == (2, "flow-map")
    assert card["sampling"]["guidance_chosen_by"] == "default"
    assert set(card["at_steps"]) == {"1"}
    assert set(card["at_steps"]["1"]) == set(card["metrics"])
    assert "reader-facts, 1 step" in done.out
    page = (tmp_path / "card" / "index.html").read_text()
    assert "Numbers of steps" in page
    assert "1 step" in page
    for wrong, message in (
        (("--steps", "2,x"), "'2,x' is not numbers of steps"),
        (("--steps", "0"), "--steps is 0"),
        (("--guidance", "20"), "guidance 20 is not one of the scales"),
    ):
        refused = command(*words, *wrong, "--out", tmp_path / "none")
        assert refused.code == 2
        assert message in refused.err
