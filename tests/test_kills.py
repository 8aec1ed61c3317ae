"""Trainings killed again and again, at any moment: resumed they are the straight run, and nothing is left over.

`SFUMATO_KILLS=50 pytest tests/test_kills.py` kills fifty times; the suite once a stage. After a random time every
second kill waits for a file that is being written: it lands inside a save.
"""

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from forks import Forked, Forks
from runs import assert_same_tensors, logged, saved
from sfumato.locks import lock_path

KILLS = int(os.environ.get("SFUMATO_KILLS", "2"))
STEPS = 6
TRAIN = f"""
import sys
from pathlib import Path
import runs
from sfumato.training.export import save_autoencoder
from sfumato.training.run import RunFolder
from sfumato.training.workers import Workers
path, stage = Path(sys.argv[1]), sys.argv[2]
settings = ("train.save_every=1", "train.steps={STEPS}", "train.power_averages={{snapshot_every: 2, snapshots: 2}}")
with RunFolder(path).session(Workers("cpu")):
    if stage == "first":
        hooks = runs.Hooks()
        hooks.export = lambda net, state: runs.first_model().save(path / "model")
        runs.train_first(path, runs.first_run(*settings[:2]), hooks)
    else:
        hooks = runs.Hooks()
        hooks.export = lambda net, state: runs.first_model().save(path / "model")
        runs.train_second(path, runs.second_run("conditioner={{kind: none}}", *settings), path / "cache", hooks)
"""


def finish(forks: Forks, path: Path, stage: str) -> float:
    """Trains to the end; the seconds that it took."""
    t_start = time.monotonic()
    process = forks.start(TRAIN, [path, stage])
    assert process.wait() == 0, process.output
    return time.monotonic() - t_start


def unfinished(path: Path) -> bool:
    """Whether a part of a save is there, begun and not yet in its place."""
    found = [entry for folder in (path, path / "states") if folder.is_dir() for entry in os.scandir(folder)]
    return any(entry.name.startswith((".step", ".tmp", ".model.new", ".model.old")) for entry in found)


def kill_inside_a_save(process: Forked, path: Path) -> None:
    while not unfinished(path) and process.poll() is None:
        time.sleep(0.0002)
    process.kill()


def files(path: Path) -> set[str]:
    """But for the cache, whose leftovers are its own matter, and TensorBoard's, named after processes."""
    found = {str(file.relative_to(path)) for file in path.rglob("*")}
    return {name for name in found if not name.startswith(("cache", "tensorboard"))}


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_run_that_is_killed_again_and_again_is_the_straight_one(stage: str, tmp_path: Path, forks: Forks) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = finish(forks, straight, stage)
    moments, left = random.Random(0), 0
    for kill in range(KILLS // 2):
        process = forks.start(TRAIN, [broken, stage])
        time.sleep(moments.uniform(0.1, 1.0) * whole)
        if kill % 2 == 0:
            kill_inside_a_save(process, broken)
        else:
            process.kill()
        process.wait()
        left += unfinished(broken)
        if len(list(broken.glob(f"states/step-{STEPS:08d}*"))):  # it was done already: once more
            assert_same_tensors(saved(straight)[0], saved(broken)[0])
            shutil.rmtree(broken)
    finish(forks, broken, stage)
    print(f"{stage}: {left} of {KILLS // 2} kills left something behind")
    assert_same_tensors(saved(straight)[0], saved(broken)[0])
    assert saved(straight)[1] == saved(broken)[1]
    assert logged(straight) == logged(broken)
    assert files(broken) == files(straight)
    assert not lock_path(broken).exists()
