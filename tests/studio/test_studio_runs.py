"""Runs as the page shows them, from their folders alone."""

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from sfumato.errors import UserError
from sfumato.locks import exclusive, writer
from sfumato.studio.cards import find_cards, images_of
from sfumato.studio.places import Places
from sfumato.studio.runs import describe, find_runs, log_after
from sfumato.studio.trainings import FitSettings, Trainings, _command_of_fit


def run(folder: Path, train: str = "steps: 40, minutes: null", steps: int = 20) -> Path:
    (folder / "previews").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"format: 2\ndenoiser: {{}}\ntrain: {{{train}}}\n")
    lines = [{"step": i, "loss": 1 / i, "images": 4 * i, "seconds": i / 2} for i in range(1, steps + 1)]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name in ("samples-00000020.png", "samples-00000010.png", "other.png"):
        (folder / "previews" / name).write_bytes(b"")
    return folder


def described(folder: Path) -> dict[str, Any]:
    return describe(folder, Places((folder.parent,)))


def test_a_run_is_described_from_its_log_and_configuration(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    found = described(folder)
    assert find_runs(Places((tmp_path,))) == [folder]
    assert (found["kind"], found["state"], found["step"], found["steps"]) == ("diffusion", "stopped", 20, 40)
    assert found["images_per_second"] == pytest.approx(8)
    assert [one["step"] for one in found["previews"]] == [10, 20]
    assert found["seconds_left"] is None


@pytest.mark.parametrize(
    ("train", "state"),
    [
        ("steps: 20", "done"),
        ("minutes: 0.16", "done"),
        ("minutes: 1", "stopped"),
        ("minutes: 1, step_limits: [2, 20]", "done"),
        ("minutes: 0.16, step_limits: [21, 30]", "stopped"),
    ],
)
def test_finished_runs_are_told_from_stopped_ones(tmp_path: Path, train: str, state: str) -> None:
    assert described(run(tmp_path / "a", train))["state"] == state


def test_a_run_that_a_process_writes_to_is_running(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    with exclusive(folder):
        found = described(folder)
        assert writer(folder) == os.getpid()
    assert found["state"] == "running"
    assert found["seconds_left"] == pytest.approx(10)
    assert writer(folder) is None


@pytest.mark.parametrize(
    ("limits", "seconds"), [("null", 50), ("[1, 999]", 50), ("[1, 60]", 20), ("[400, 999]", 190), ("[1, 20]", 0)]
)
def test_the_time_left_follows_the_limits_of_the_steps(tmp_path: Path, limits: str, seconds: float) -> None:
    folder = run(tmp_path / "a", f"minutes: 1, step_limits: {limits}")
    with exclusive(folder):
        assert described(folder)["seconds_left"] == pytest.approx(seconds)


def test_locks_of_dead_processes_and_other_machines_are_no_writers(tmp_path: Path) -> None:
    for about in ({"process": 2**22 + 1, "host": socket.gethostname()}, {"process": os.getpid(), "host": "other"}, []):
        (tmp_path / ".a.lock").write_text(json.dumps(about))
        assert writer(tmp_path / "a") is None


def test_the_log_is_read_from_a_byte_on(tmp_path: Path) -> None:
    folder = run(tmp_path / "a", steps=3)
    first = log_after(folder, 0)
    assert [line["step"] for line in first["lines"]] == [1, 2, 3]
    with (folder / "log.jsonl").open("a") as log:
        log.write('{"step": 4}\n{"step": 5')
    more = log_after(folder, first["next"])
    assert [line["step"] for line in more["lines"]] == [4]
    (folder / "log.jsonl").write_text('{"step": 1}\n')  # resumed from an earlier state
    assert log_after(folder, more["next"]) == {"lines": [{"step": 1}], "from": 0, "next": 12}


def test_damaged_runs_are_shown_without_what_is_damaged(tmp_path: Path) -> None:
    folder = run(tmp_path / "a")
    (folder / "config.yaml").write_text("a: [")
    (folder / "log.jsonl").write_bytes(b'\xff\n[1]\n{"step": "x"}\n')
    found = described(folder)
    assert (found["step"], found["kind"], found["state"]) == (0, "training", "stopped")


def test_a_training_is_the_real_command(tmp_path: Path) -> None:
    wanted = FitSettings(tmp_path / "images", tmp_path / "out", 5.0, ("data.size=32",))
    assert wanted.command("--dry-run")[0] == "fit"
    assert wanted.command("--dry-run")[-3:] == ["5", "--dry-run", "data.size=32"]


def test_a_fit_of_a_terminal_is_listed_with_the_command_that_continues_it(tmp_path: Path) -> None:
    (tmp_path / "work" / "images").mkdir(parents=True)
    out = tmp_path / "work" / "runs" / "a b"
    trained = run(out / "autoencoder")
    (out / "plan.json").write_text(json.dumps({"data": "images", "settings": ["data.size=16"]}))
    trainings = Trainings(tmp_path / "kept")
    with exclusive(out):
        (listed,) = trainings.listed([trained])
    assert listed["command"] == f"sfumato fit images --out '{out}' data.size=16"
    assert (listed["path"], listed["state"], listed["report"]) == (str(out), "running", None)
    assert _command_of_fit(out) == (
        ["fit", "images", "--out", str(out), "data.size=16"],
        str(tmp_path / "work"),  # where the relative path holds
    )
    (out / "plan.json").write_text('{"data": "images", "settings": ["--out=/etc"]}')
    assert trainings.listed([trained]) == []


def test_stopping_what_does_not_run_and_continuing_what_is_not_known(tmp_path: Path) -> None:
    trainings = Trainings(tmp_path / "kept")
    with pytest.raises(UserError, match="no process trains"):
        trainings.stop(tmp_path / "a")
    with pytest.raises(UserError, match="was not started by `sfumato fit`"):
        trainings.resume(tmp_path / "a")
    (tmp_path / "kept" / "trainings.json").write_text("[broken")
    assert Trainings(tmp_path / "kept").listed() == []


def test_cards_and_the_images_of_their_pages(tmp_path: Path) -> None:
    folder = tmp_path / "card"
    folder.mkdir()
    facts = {"kind": "samples", "version": "0", "created": "2026", "subject": {}, "data": {}, "protocol": {}}
    (folder / "card.json").write_text(json.dumps({**facts, "metrics": {"fd": {"value": 2.0}}}))
    page = (
        '<div class="grid"><span><img src="data:image/png;base64,AA"></span></div><img src="data:image/png;base64,BB">'
    )
    (folder / "index.html").write_text(page)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "card.json").write_text("{")
    assert [card["metrics"]["fd"]["value"] for card in find_cards(Places((tmp_path,)))] == [2.0]
    assert images_of(folder) == ["data:image/png;base64,AA"]
