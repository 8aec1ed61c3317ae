"""The benchmark of samplers: network calls are counted, not assumed, and results become tables and charts."""

import json
from pathlib import Path

import pytest
import torch

import tiny
from sfumato.images import to_pil, to_unit
from sfumato.pipeline.parts import second_stage
from sfumato.sampling.table import SAMPLERS

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_every_sampler_spends_what_its_budget_allows() -> None:
    from benchmarks.samplers import calls_of, steps_within

    second = second_stage(tiny.model(tiny.UNCONDITIONAL))
    for name in ["auto", *SAMPLERS]:
        for budget in (4, 15):
            steps = steps_within(name, second, budget)
            assert calls_of(name, second, steps) <= budget < calls_of(name, second, steps + 1), name
    # the last step of Heun's method, to t = 0, has one slope only
    assert calls_of("heun", second, 5) == 9
    assert calls_of("plms", second, 5) == 6
    assert steps_within("plms", second, 1) == 0


def row(sampler: str, calls: int, facts: float, sweep: str = "calls", scale: float = 3.0) -> dict[str, object]:
    cell = {"sweep": sweep, "sampler": sampler, "steps": calls, "guidance": scale, "interval": [0.0, 1.0]}
    cell["budget"] = calls
    return {"cell": cell, "calls": calls, "facts": facts, "frechet": 10 * (1 - facts)}


def test_results_become_tables_and_charts(tmp_path: Path) -> None:
    from benchmarks.sampler_page import write_results

    about = {
        "model": "abc",
        "images": 8,
        "guidance": 3.0,
        "features": {"name": "efficientnet-lite0"},
        "machine": {"device": "a processor", "threads": 2},
    }
    rows = [row("ddim", 4, 0.1), row("ddim", 8, 0.5), row("dpmpp-2m", 4, 0.3), row("dpmpp-2m", 8, 0.75)]
    rows += [row("auto", 20, 0.6, "scale", scale) for scale in (1.0, 3.0)] + [row("auto", 20, 0.7, "interval")]
    write_results(tmp_path, about, rows)
    table = (tmp_path / "samplers.md").read_text()
    assert "| sampler | 4 | 8 |" in table
    assert "| dpmpp-2m | 30.0% | 75.0% |" in table
    assert "| ddim | 9.00 | 5.00 |" in table
    assert "| 3 | 0 to 1 | 70.0% | 3.00 |" in table
    page = (tmp_path / "samplers.html").read_text()
    assert page.count("<svg") == 2 * 2 + 2, "two families by two scores, and the scale by both"
    assert "<polyline" in page
    assert (tmp_path / "samplers.json").exists()
    for score in ("facts", "frechet"):
        assert "dpmpp-2m" in (tmp_path / f"{score}.svg").read_text()


def test_a_model_of_other_images_is_held_against_a_folder(tmp_path: Path) -> None:
    from benchmarks.samplers import parsed, run

    from sfumato.data.folder_config import FolderConfig
    from sfumato.data.table import open_dataset
    from sfumato.evaluation.frechet import GaussianStatistics, frechet_distance
    from sfumato.evaluation.table import load_network

    model = tiny.model()
    model.save(tmp_path / "model")
    (tmp_path / "real").mkdir()
    noise = torch.Generator().manual_seed(0)
    for i in range(3):
        pixels = torch.randint(0, 256, (3, 20, 24), generator=noise, dtype=torch.uint8)
        to_pil(pixels).save(tmp_path / "real" / f"{i}.png")
    (tmp_path / "prompts.txt").write_text("a red apple\n\ntwo blue discs\n")
    given = [str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--device", "cpu", "--precision", "float32"]
    given += ["--real", str(tmp_path / "real"), "--prompts", str(tmp_path / "prompts.txt")]
    given += ["--images", "3", "--calls", "2", "--samplers", "ddim", "--batch", "2", "--guidance", "1"]
    messages: list[str] = []
    run(parsed(given), messages.append)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / "measurements.jsonl").read_text().splitlines()]
    assert (row["took"], row["calls"], "facts" in row) == ("ddim", 2, False)
    network = load_network("efficientnet-lite0")
    dataset = open_dataset(FolderConfig(path=tmp_path / "real", size=(16, 24)))
    real = torch.stack([to_unit(dataset[i].image) for i in range(3)])
    texts = ["a red apple", "two blue discs", "a red apple"]
    sampled = model.sample_tensor(texts, steps=2, sampler="ddim", guidance=1, seeds=[0, 1, 2]).clamp(-1, 1)
    expected = [GaussianStatistics.of(network(images).pooled) for images in (sampled, real)]
    assert row["frechet"] == pytest.approx(frechet_distance(*expected), rel=1e-3)
    assert (tmp_path / "out" / "samplers.html").exists()
    run(parsed(given), messages.append)
    assert sum("ddim, 2 calls" in line for line in messages) == 1, "what is measured is not measured again"
