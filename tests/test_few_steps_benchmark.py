"""The comparison of students with their teacher: guidance is chosen apart from what is reported, facts or none."""

import importlib
import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from command_line import Runs
from data.make_images import metadata, save
from runs import second_run
from sfumato.data.toyworld.facts import Prompt
from sfumato.errors import UserError
from sfumato.evaluation.kernel import squared_mmd


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Its features are an image's mean colour."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    found = importlib.import_module("benchmarks.few_steps")
    monkeypatch.setattr(found, "load_network", lambda name: lambda x: SimpleNamespace(pooled=x.mean((2, 3)).double()))
    return found


def test_a_model_is_measured_on_the_words_of_its_world(
    few_steps: ModuleType, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """zoo:toy stands for the run here; the guidance is the best on the first half of the captions."""
    asked: list[tuple[float, int, list[str]]] = []

    def sampled(model: object, captions: list[str], steps: int, guidance: float, first: int) -> Tensor:
        asked.append((guidance, first, list(captions)))
        images = torch.rand(len(captions), 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return images if guidance == 2 else torch.zeros_like(images)

    def rates(name: str, prompts: list[Prompt], images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(rates={"facts": float(images.std() > 0.1), "prompts": 0.25})

    monkeypatch.setattr(few_steps, "sampled", sampled)
    monkeypatch.setattr(few_steps, "score_row", rates)
    monkeypatch.setattr(few_steps, "seconds_of", lambda *given: 0.5)
    words = ["zoo:toy", "--out", str(tmp_path), "--images", "3", "--scales", "1.5,2,3"]
    few_steps.run(few_steps.parsed(words), lambda line: None)
    (row,) = json.loads((tmp_path / "few-steps.json").read_text())["rows"]
    assert (row["guidance"], row["facts"], row["prompts"], row["calls"]) == (2, 1, 0.25, 40)
    assert "| 100.0% | 100.0% | 25.0% |" in (tmp_path / "few-steps.md").read_text()
    (*chosen, reported, sheet) = asked
    assert [guidance for guidance, *_ in chosen] == [1.5, 2, 3]
    assert {first for _, first, _ in chosen} == {100_000}
    assert (reported[:2], sheet[:2]) == ((2, 0), (2, 0))
    assert not set(chosen[0][2]) & set(reported[2])
    assert not any(word in text for text in reported[2] + chosen[0][2] for word in ("striped", "dotted", "cross"))


def test_images_have_a_kernel_distance_and_no_facts(few_steps: ModuleType, tmp_path: Path) -> None:
    save(tmp_path, [f"{index}.png" for index in range(9)], 32, 32)
    metadata(tmp_path, [{"file_name": f"{index}.png", "text": f"image {index}"} for index in range(8)])
    network = few_steps.load_network("")
    config = second_run(f"data={{kind: folder, path: '{tmp_path}', size: 32}}")
    first, second = few_steps.image_halves(config, 4, network)
    assert sorted(first.captions + second.captions) == [f"image {index}" for index in range(8)]
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    distance = float(squared_mmd(images.mean((2, 3)).double(), first.real))
    assert (first.distance(images, network), first.quality(images, network)) == (distance, -distance)
    with pytest.raises(UserError, match="--images 5 needs 10 images with captions, and there are 8"):
        few_steps.image_halves(config, 5, network)


def test_a_teacher_without_data_is_refused(few_steps: ModuleType, tmp_path: Path) -> None:
    import tiny

    tiny.model("image_size=[32, 32]").save(tmp_path)
    with pytest.raises(UserError, match="neither a run nor a model of the toy world"):
        few_steps.exam_of(tmp_path, 2, "any")
