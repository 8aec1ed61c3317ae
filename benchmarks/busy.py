"""A training step of the demo's stage 2 with one thread, with all cores, and with all beside a busy program.

    python -m benchmarks.busy --steps 60

The real loop trains `zoo:toy/small-text`, each row in a process of its own; the busy program counts on one core. A row
is the median of the last half of the steps, after the run has found its number of threads.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from sfumato.config import load_config
from sfumato.training.autoencoder_run import AutoencoderRun
from sfumato.training.diffusion_run import DiffusionRun
from sfumato.training.log import read_lines
from sfumato.training.workers import available_cores

FIRST, SECOND = "zoo:toy/small-autoencoder", "zoo:toy/small-text"
COUNTING = "while True: pass"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a row for each way, and the ratio of the busy one to the idle one with all cores."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.busy", description=__doc__)
    parser.add_argument("--steps", type=int, default=60, help="of each row")
    parser.add_argument("settings", nargs="*", metavar="a.b=c", help="settings of stage 2, such as train.batch=32")
    options = parser.parse_args(arguments)
    config = load_config(SECOND, options.settings, DiffusionRun)
    print(f"{SECOND}, batch {config.train.batch}, {options.steps} steps, {available_cores()} cores")
    with TemporaryDirectory(prefix="sfumato-busy-") as place:
        root = Path(place)
        first = trained_first(root)
        one = seconds(root / "one", first, options.steps, options.settings, threads=1)
        print(f"one thread                        {1000 * one:7.1f} ms a step", flush=True)
        idle = seconds(root / "all", first, options.steps, options.settings)
        print(f"all cores                         {1000 * idle:7.1f} ms a step", flush=True)
        with busy_program():
            beside = seconds(root / "busy", first, options.steps, options.settings)
        print(f"all cores, one of them busy       {1000 * beside:7.1f} ms a step, {beside / idle:.2f} of the idle time")


def trained_first(root: Path) -> Path:
    """A stage 1 of a few steps, whose latents stage 2 is timed on."""
    config = load_config(FIRST, ["data.length=512"], AutoencoderRun)
    few = ["train.steps=4", f"train.preview_every={config.train.preview_every}", "train.save_every=4"]
    run(["autoencoder", FIRST, "--out", str(root / "first"), "data.length=512", *few], None)
    return root / "first"


def seconds(out: Path, first: Path, steps: int, settings: Sequence[str], threads: int | None = None) -> float:
    """Of a step, the median of the last half; `threads`: None leaves their number to the run."""
    never = [f"train.{name}_every={steps}" for name in ("preview", "save")]
    length = [f"train.steps={steps}", "train.log_every=1", "data.length=512", *never]
    run(["diffusion", SECOND, "--autoencoder", str(first), "--out", str(out), *settings, *length], threads)
    total = [line["seconds"] for line in read_lines(out / "log.jsonl") if "seconds" in line]
    each = [after - before for before, after in pairwise(total)]
    return median(each[len(each) // 2 :])


def run(arguments: Sequence[str], threads: int | None) -> None:
    """`sfumato train` in a process of its own. Raises CalledProcessError where it fails."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "sfumato", "train", *arguments]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@contextmanager
def busy_program() -> Iterator[None]:
    """Another program that keeps one core busy within the block."""
    core = f"import os; hasattr(os, 'sched_setaffinity') and os.sched_setaffinity(0, {{{_last_core()}}})"
    other = subprocess.Popen([sys.executable, "-c", f"{core}\n{COUNTING}"])
    try:
        yield
    finally:
        other.kill()
        other.wait()


def _last_core() -> int:
    return max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


if __name__ == "__main__":
    main()
