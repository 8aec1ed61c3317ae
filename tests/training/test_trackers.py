"""Curves and previews in other programs: TensorBoard and Weights & Biases by their libraries, trackio by a recorder."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from sfumato.errors import UserError
from sfumato.training.log import RunLog
from sfumato.training.trackers import check_tracker, open_tracker


def run(folder: Path) -> Path:
    """A run's folder with one preview of step 2."""
    (folder / "previews").mkdir(parents=True)
    (folder / "config.yaml").write_text("format: 2\ntrain: {steps: 4}\n")
    Image.new("RGB", (8, 4), (200, 40, 40)).save(folder / "previews" / "samples-00000002.png")
    return folder


def trained(folder: Path, track: Any, first: int = 1) -> None:
    """The calls of a training: two steps, with a preview after step 2."""
    with RunLog(folder, "t", first - 1, 0.0, track=track) as log:
        for step in (first, first + 1):
            log.record(step, {"loss": 1 / step, "per_channel": [1.0, 2.0]})
            log.show_previews(step)


def test_tensorboard_has_curves_and_previews(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(run(tmp_path / "run"), "tensorboard")
    read = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    read.Reload()
    assert [(one.step, one.value) for one in read.Scalars("loss")] == [(1, 1.0), (2, 0.5)]
    assert [one.step for one in read.Images("samples")] == [2]


def test_wandb_writes_a_run_without_a_network_and_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    folder = run(tmp_path / "run")
    trained(folder, "wandb")
    first = (folder / "track.json").read_text()
    trained(folder, "wandb", first=3)
    assert (folder / "track.json").read_text() == first  # one run for all sessions
    stored = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(stored) == 2
    written = stored[0].read_bytes()
    assert all(part in written for part in (b"loss", b"samples", b"steps"))


def test_trackio_gets_what_its_interface_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, Any]] = []
    recorder = SimpleNamespace(
        __spec__=SimpleNamespace(),
        init=lambda **given: calls.append(("init", given)),
        log=lambda values, step: calls.append((f"log {step}", values)),
        Image=lambda path: f"image {Path(path).name}",
        finish=lambda: calls.append(("finish", None)),
    )
    monkeypatch.setitem(sys.modules, "trackio", recorder)
    trained(run(tmp_path / "run"), "trackio")
    (begun, given), *rest = calls
    assert (begun, given["project"], given["resume"]) == ("init", "sfumato", "allow")
    assert given["config"]["train"] == {"steps": 4}
    assert given["name"].startswith("run-")
    assert rest == [
        ("log 1", {"loss": 1.0}),
        ("log 2", {"loss": 0.5}),
        ("log 2", {"samples": "image samples-00000002.png"}),
        ("finish", None),
    ]


def test_a_tracker_that_cannot_begin_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**given: object) -> None:
        raise RuntimeError("api_key not configured\n(no-tty)")

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(__spec__=SimpleNamespace(), init=init))
    with pytest.raises(UserError, match=r"train.track=trackio cannot begin \(\(no-tty\)\): log in there"):
        open_tracker("trackio", run(tmp_path / "run"), 0)
    monkeypatch.setattr("sfumato.training.trackers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"train.track=wandb needs its library: pip install wandb"):
        check_tracker("wandb")
    check_tracker("auto")


def test_without_a_tracker_the_log_is_written_all_the_same(tmp_path: Path) -> None:
    folder = run(tmp_path / "run")
    trained(folder, "none")
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "log.jsonl", "previews"]
