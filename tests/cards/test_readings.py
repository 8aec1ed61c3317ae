"""The readings of the numbers about the latent in a run's log."""

from pathlib import Path

from runs import Images, first_run
from sfumato.cards.readings import READINGS, logged_readings, position
from sfumato.cli.train import latent_sentences
from sfumato.plain_json import to_json
from sfumato.training.autoencoder import build_stage1
from sfumato.training.previews import Reconstructions
from sfumato.training.workers import Workers


def test_a_sentence_for_each_number_of_the_latent() -> None:
    line = {"step": 3, "viv": 0.8125, "effective_rank": 0.1, "spectral_energy_0.25": 0.2, "psnr": 20.0}
    first, *others = logged_readings(line)
    assert first == f"VIV 0.812, usual {READINGS['VIV'].usual}. {READINGS['VIV'].says}"
    assert [each.split()[0] for each in others] == ["effective-rank", "spectral-energy-0.25"]
    assert logged_readings({"psnr": 20.0}) == []


def test_a_value_outside_the_usual_ones_is_named() -> None:
    usual = READINGS["VIV"].usual
    assert [position(value, usual) for value in (0.2, 0.4, 1.1, 1.22)] == ["below", "", "", "above"]
    assert position(9.0, READINGS["VIV-within-classes"].usual) == ""
    assert {position(1e9, reading.usual) for name, reading in READINGS.items() if "within" not in name} == {"above"}


def test_a_preview_measures_the_latent(tmp_path: Path) -> None:
    preview = Reconstructions.of(Images(), 8, tmp_path, "float32")
    values = preview(build_stage1(first_run(), Workers()).autoencoder, 0)
    low, high = (values[f"spectral_energy_{share}"] for share in (0.25, 0.5))
    assert isinstance(low, float)
    assert isinstance(high, float)
    assert 1 > low > high > 0
    assert len(logged_readings(values)) == 5, "with the bits of each number"


def test_the_end_of_a_run_says_what_its_last_numbers_mean(tmp_path: Path) -> None:
    lines = [{"step": 2, "viv": 0.5}, {"step": 4, "viv": 0.75}, {"step": 4, "reconstruction": 0.1}]
    (tmp_path / "log.jsonl").write_text("".join(to_json(line) + "\n" for line in lines))
    assert [each[:9] for each in latent_sentences(tmp_path, 4)] == ["VIV 0.75,"]
    assert latent_sentences(tmp_path, 6) == [], "stopped after its last preview"
