"""The text inside images: what other programs read of it, and sampling an image again from it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from sd_parsers import ParserManager
from serving import done, service_of
from test_jobs import IMAGE, MASK, hole, noise

from command_line import Command
from sfumato.provenance import named, parameters, read_settings

FLOAT32 = ("--precision", "float32")


def served_image(folder: Path, out: Path, body: dict[str, Any], index: int = 0, **settings: Any) -> Path:
    service = service_of([folder], out, **settings)
    with service.running():
        (job,) = done(service.submit(body))
    assert job.state == "done", job.error
    return service.image(job.id, index)


def test_the_text_is_read_by_others(folders: dict[str, Path], tmp_path: Path) -> None:
    body = {"prompt": 'a red, "round" apple', "negative": "a flat\nhill", "steps": 2, "seed": 5, "guidance": 2.5}
    path = served_image(folders["text"], tmp_path, {**body, "sampler": "ddim:eta=0.5"})
    with Image.open(path) as image:
        assert set(image.info) == {"parameters", "sfumato"}
        settings, text = read_settings(image)
    assert settings is not None
    assert text is not None
    assert settings["request"]["sampler"] == "ddim:eta=0.5"
    read = ParserManager().parse(path)
    assert read is not None
    assert read.generator.value == "AUTOMATIC1111"
    (sampler,) = read.samplers
    assert (sampler.name, sampler.parameters["steps"], sampler.parameters["seed"]) == ("ddim", "2", "5")
    assert float(sampler.parameters["cfg_scale"]) == 2.5
    assert [prompt.value for prompt in sampler.prompts] == [body["prompt"]]
    assert [prompt.value for prompt in sampler.negative_prompts] == [body["negative"]]
    assert sampler.model is not None
    assert sampler.model.hash == settings["model"]["digest"]


@pytest.mark.parametrize(
    ("name", "body", "index"),
    [
        ("text", {"prompt": ["a red apple", "two blue discs"], "sampler": "dpmpp-2m-sde:eta=0.7", "steps": 3}, 1),
        ("text", {"prompt": "a red apple", "times": [0.9, 0.5, 0.1], "projection": {"momentum": -0.5}}, 0),
        ("text", {"task": "interpolate", "prompt": ["a red apple", "two blue discs"], "frames": 3, "steps": 2}, 1),
        ("text", {"task": "edit", "prompt": "a red apple", "image": IMAGE, "steps": 3, "count": 2}, 1),
        ("masked", {"task": "inpaint", "image": IMAGE, "mask": MASK, "steps": 2}, 0),
    ],
)
def test_an_image_of_the_service_is_reproduced(
    name: str, body: dict[str, Any], index: int, folders: dict[str, Path], tmp_path: Path, command: Command
) -> None:
    path = served_image(folders[name], tmp_path / "out", body, index, lanes=2)
    noise(24, 16).save(tmp_path / "image.png")
    hole(24, 16).save(tmp_path / "mask.png")
    inputs = [
        part for each in ("image", "mask") if each in body for part in ("--input", f"{each}={tmp_path}/{each}.png")
    ]
    again = command("reproduce", path, folders[name], *inputs)
    assert (again.code, again.out) == (0, "equal, bit for bit\n"), again
    if inputs:
        assert "which are not inside it: give --input image=FILE" in command("reproduce", path, folders[name]).err


def test_images_of_the_command_line_are_reproduced(
    folders: dict[str, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders["text"].parent)  # where a model of the name is
    some = ("a red apple", "-n", 3, "--steps", 3, "--sampler", "ddpm", "--guidance", 2)
    assert command("sample", folders["text"], *some, *FLOAT32, "--out", tmp_path).code == 0
    again = command("reproduce", tmp_path / "0001.png", "--out", tmp_path / "again")
    assert again.code == 0, again
    assert (tmp_path / "again" / "0000.png").exists()
    noise(24, 16).save(tmp_path / "photo.png")
    words = (tmp_path / "photo.png", "two blue discs", "--steps", 4)
    assert command("edit", folders["text"], *words, *FLOAT32, "--out", tmp_path / "edited").code == 0
    edited = tmp_path / "edited" / "0000.png"
    assert command("reproduce", edited, "--input", f"image={tmp_path}/photo.png").code == 0


def test_an_image_of_a_model_of_the_package_names_its_model(tmp_path: Path, command: Command) -> None:
    made = command("sample", "zoo:toy", "a red circle", "-n", 1, "--steps", 1, "--device", "cpu", "--out", tmp_path)
    assert made.code == 0, made.err
    again = command("reproduce", tmp_path / "0000.png")
    assert (again.code, again.out) == (0, "equal, bit for bit\n"), again.err


def test_what_differs_is_said(folders: dict[str, Path], tmp_path: Path, command: Command) -> None:
    path = served_image(folders["text"], tmp_path / "out", {"prompt": "a red apple", "steps": 1})
    assert "give that model" in command("reproduce", path, folders["label"]).err
    with Image.open(path) as image:
        changed = dict(image.info)
        settings = json.loads(changed["sfumato"])
        settings["version"], settings["request"]["seeds"] = "0.0.1", [9]
        other = Image.new("RGB", image.size)
    from sfumato.images import save_png

    save_png(tmp_path / "other.png", other, {**changed, "sfumato": json.dumps(settings)})
    done = command("reproduce", tmp_path / "other.png", folders["text"])
    assert done.code == 1
    assert "of the pixels differ" in done.out
    assert "version was 0.0.1" in done.out
    noise(24, 16).save(tmp_path / "plain.png")
    assert "no text of sfumato" in command("reproduce", tmp_path / "plain.png", folders["text"]).err
    for text in ("{", "[]", '{"format": 1, "model": {}, "request": {"task": "sample", "evil": 1}, "computed": {}}'):
        save_png(tmp_path / "bad.png", other, {"sfumato": text})
        assert command("reproduce", tmp_path / "bad.png", folders["text"]).code == 2


def test_a_batch_that_only_the_text_claims_is_not_computed(
    folders: dict[str, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = served_image(folders["text"], tmp_path / "out", {"prompt": "a red apple", "steps": 1})
    with Image.open(path) as image:
        info, other = dict(image.info), Image.new("RGB", image.size)
    settings = json.loads(info["sfumato"])
    settings["computed"]["rows"] = 1000
    from sfumato.images import save_png
    from sfumato.service import reproducing

    save_png(tmp_path / "other.png", other, {**info, "sfumato": json.dumps(settings)})
    monkeypatch.setattr(reproducing, "MOST_PIXELS", 999 * other.width * other.height)
    done = command("reproduce", tmp_path / "other.png", folders["text"])
    assert "rows was 1000 and is 1" in done.out, done


def test_numbers_of_the_text_are_exact() -> None:
    assert named({"kind": "ddim", "eta": 0.1 + 0.2, "tiny": 1e-07}) == f"ddim:eta={0.1 + 0.2!r},tiny=1.0e-07"
    assert parameters({"seed": 1, "steps": 2}, (8, 6)).startswith("\nSteps: 2, Seed: 1, Size: 8x6, Version: sfumato")
