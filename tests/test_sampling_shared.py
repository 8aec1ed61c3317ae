"""Sampling in several processes, or again after an interruption: the same files, byte for byte."""

from pathlib import Path

import pytest

from command_line import Command, Runs, check, contents

OPTIONS = ("a", "b", "c", "--count", "3", "--steps", "2", "--batch", "2", "--size", "32")


def test_the_images_are_the_same_bytes_for_any_number_of_processes(
    command: Command, runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("sample", str(runs.text), *OPTIONS)
    alone, several = tmp_path / "alone", tmp_path / "several"
    assert command(*arguments, "--out", str(alone), "--resume").code == 0
    expected = contents(alone)
    assert sorted(expected) == [*(f"{n:04d}.png" for n in range(9)), "sampling.json"]
    monkeypatch.setenv("WORLD_SIZE", "3")
    for rank in (2, 0, 1):
        monkeypatch.setenv("RANK", str(rank))
        done = command(*arguments, "--out", str(several))
        assert done.code == 0, done
        assert f"process {rank} of 3: {4 if rank == 0 else 3 if rank == 1 else 2} images in" in done.out
    assert contents(several) == expected
    for name in ("WORLD_SIZE", "RANK"):  # a refusal of one of several processes would end this one at once
        monkeypatch.delenv(name)
    strip = command(*arguments, "--out", str(several), "--resume", "--strip", "1")
    check(strip, "--strip does not go with several processes or --resume")

    (several / "0004.png").unlink()
    kept = (several / "0003.png").stat().st_mtime_ns, (several / "0006.png").stat().st_mtime_ns
    done = command(*arguments, "--out", str(several), "--resume")
    assert "2 images in" in done.out, "the batch of the missing one"
    assert "7 were there" in done.out
    assert contents(several) == expected
    assert kept[0] == (several / "0003.png").stat().st_mtime_ns
    assert kept[1] == (several / "0006.png").stat().st_mtime_ns
    check(command(*arguments, "--out", str(several), "--resume", "--seed", "1"), "images of another request")
    (several / "sampling.json").unlink()
    check(command(*arguments, "--out", str(several), "--resume"), "not sampled with --resume")
