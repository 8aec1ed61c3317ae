"""Times networks on a GPU beside diffusers, in one run, and prints tables.

python -m benchmarks.gpu --out runs/gpu
"""

import argparse
import gc
import json
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.choice import chosen
from benchmarks.gpu_workloads import HALF, Timed, call, first_stage, sampling, step
from benchmarks.networks import W1, W2, W2_REAL
from sfumato.autoencoder.model import AutoencoderConfig
from sfumato.checkpoint import write_text
from sfumato.report.machine import describe

KL_F8 = AutoencoderConfig()
Build = Callable[[torch.device], Timed]
WORKLOADS: dict[str, Build] = {
    "W2 guided call, batch 1": lambda device: call(W2, 2, True, 32, device),
    "W2 guided call, batch 16": lambda device: call(W2, 32, True, 32, device),
    "W2 sample, 20 steps, batch 1": lambda device: sampling(W2, KL_F8, 1, 32, 20, device),
    "W2 sample, 20 steps, batch 8": lambda device: sampling(W2, KL_F8, 8, 32, 20, device),
    "W4 step, W2 batch 8": lambda device: step(W2, 8, True, 32, device),
    "W4 step, W2 batch 64": lambda device: step(W2, 64, True, 32, device),
    "W2-real guided call, 64x64, batch 1": lambda device: call(W2_REAL, 2, True, 64, device),
    "W2-real guided call, 64x64, batch 8": lambda device: call(W2_REAL, 16, True, 64, device),
    "W3 decode 256": lambda device: first_stage(KL_F8, 256, True, device),
    "W3 decode 512": lambda device: first_stage(KL_F8, 512, True, device),
    "W3 encode 256": lambda device: first_stage(KL_F8, 256, False, device),
    "W3 encode 512": lambda device: first_stage(KL_F8, 512, False, device),
    "W1 call, batch 2": lambda device: call(W1, 2, False, 32, device),
    "W1 call, batch 32": lambda device: call(W1, 32, False, 32, device),
    "W4 step, W1 batch 8": lambda device: step(W1, 8, False, 32, device),
    "W4 step, W1 batch 64": lambda device: step(W1, 64, False, 32, device),
}
"""In the order they run: what would be missed most comes first."""
AT_ONCE = 0.03
"""Seconds of calls that are timed together, so that the queue is as full as in use."""
WARM_UPS = 3
"""A network's calls are recorded at the second one."""


@dataclass(frozen=True)
class Timing:
    """Seconds of a call, the median of the rounds; the difference to the first candidate's result over its largest."""

    seconds: float
    first_seconds: float
    difference: float


@dataclass
class Results:
    """Of one run."""

    about: dict[str, Any]
    peak: float
    """Operations a second of a large bfloat16 matrix product."""
    workloads: dict[str, tuple[Timed, dict[str, Timing]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, with what the tables derive from it."""
        return {
            "about": self.about,
            "peak_bf16_flops": self.peak,
            "failed": self.failed,
            "workloads": {
                name: {
                    "samples": timed.samples,
                    "unit": timed.unit,
                    "flops": timed.flops,
                    "candidates": {
                        candidate: {**asdict(timing), "of_the_peak": share(timed, candidate, timing, self.peak)}
                        for candidate, timing in timings.items()
                    },
                }
                for name, (timed, timings) in self.workloads.items()
            },
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the workloads whose name contains `--only`."""
    t_start = time.monotonic()
    options = parsed(arguments)
    device = torch.device(options.device)
    results = begun(arguments, device)
    print(*heading(results), sep="\n", flush=True)
    for name, build in chosen(WORKLOADS, options.only).items():
        if options.seconds and time.monotonic() - t_start > options.seconds:
            results.failed[name] = f"left out: the {options.seconds:g} s were over"
            continue
        try:
            timed = build(device)
            results.workloads[name] = timed, interleaved(timed.candidates, options.rounds, device)
        except RuntimeError as error:  # one that does not fit this GPU's memory does not take the others with it
            results.failed[name] = " ".join(str(error).split())[:200]
            print(f"\n{name} failed: {results.failed[name]}", flush=True)
        else:
            print(*table(name, *results.workloads[name], results.peak), sep="\n", flush=True)
            timed.candidates.clear()  # their networks
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
        write(results, options.out)
    write(results, options.out)
    print(f"\n{time.monotonic() - t_start:.0f} s")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument(
        "--only", default="", help="run the workloads whose name contains this, or one of several, parted by ;"
    )
    parser.add_argument("--rounds", type=int, default=5, help="the medians are of so many")
    parser.add_argument("--seconds", type=float, default=0, help="begin no workload after so many; 0: run all")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, help="a folder for gpu.json and gpu.md, written after each workload")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(arguments)
    if options.list:
        print(*WORKLOADS, sep="\n")
        raise SystemExit(0)
    if options.rounds < 1:
        parser.error("--rounds takes at least 1")
    if not chosen(WORKLOADS, options.only):
        parser.error(f"--only {options.only!r} names no workload; --list prints them")
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; `python -m benchmarks` times the CPU")
    return options


def begun(arguments: Sequence[str] | None, device: torch.device) -> Results:
    """Results without workloads: the machine, and what it reaches."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # it warns at every cast
    about = {
        "command": shlex.join(["python", "-m", "benchmarks.gpu", *(sys.argv[1:] if arguments is None else arguments)]),
        "machine": describe(device).device,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "tf32": f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}",
    }
    return Results(about, peak_flops(device))


def peak_flops(device: torch.device, side: int = 8192) -> float:
    """Operations a second of the largest matrix product that is worth waiting for."""
    side = side if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device, dtype=HALF)
    timing = interleaved({"peak": lambda: a @ a}, 5, device)["peak"]
    return 2 * side**3 / timing.seconds


def interleaved(candidates: Mapping[str, Callable[[], Tensor]], rounds: int, device: torch.device) -> dict[str, Timing]:
    """Times each candidate in turn, round by round, calls in a row together, after some to warm up.

    The results compared are those of the second call: of training steps, losses after an update.
    """
    first: dict[str, float] = {}
    outputs: dict[str, Tensor] = {}
    in_a_row: dict[str, int] = {}
    for name, made in candidates.items():
        first[name] = seconds(made, 1, device)
        outputs[name] = made().detach().float().clone()
        spent = [seconds(made, 1, device) for _ in range(WARM_UPS - 1)]
        in_a_row[name] = max(1, min(50, int(AT_ONCE / min(spent))))
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, made in candidates.items():
            found[name].append(seconds(made, in_a_row[name], device))
    reference = next(iter(outputs.values()))
    return {
        name: Timing(
            statistics.median(found[name]),
            first[name],
            ((outputs[name] - reference).abs().max() / reference.abs().max()).item(),
        )
        for name in candidates
    }


def seconds(made: Callable[[], object], times: int, device: torch.device) -> float:
    """Of a call among several in a row, until the device has done them all."""
    finish(device)
    t_start = time.perf_counter()
    for _ in range(times):
        made()
    finish(device)
    return (time.perf_counter() - t_start) / times


def finish(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def share(timed: Timed, candidate: str, timing: Timing, peak: float) -> float | None:
    """Of the bfloat16 peak; None for float32 and where arithmetic is not counted."""
    if timed.flops is None or "float32" in candidate:
        return None
    return timed.flops / timing.seconds / peak


def table(name: str, timed: Timed, timings: Mapping[str, Timing], peak: float) -> Iterator[str]:
    """One workload; ratios above 1 are faster than the first row."""
    base = next(iter(timings.values())).seconds
    arithmetic = "" if timed.flops is None else f" ({timed.flops / 1e9:.0f} GFLOP)"
    yield from ("", f"## {name}{arithmetic}", "")
    yield f"| | ms | {timed.unit} / s | × | of the peak | first call s | difference |"
    yield "|---|---|---|---|---|---|---|"
    for candidate, timing in timings.items():
        used = share(timed, candidate, timing, peak)
        yield (
            f"| {candidate} | {timing.seconds * 1e3:.2f} | {timed.samples / timing.seconds:.4g} "
            f"| {base / timing.seconds:.2f} | {'–' if used is None else f'{used:.0%}'} "
            f"| {timing.first_seconds:.2f} | {timing.difference:.1e} |"
        )


def heading(results: Results) -> Iterator[str]:
    """The command and the machine."""
    about = results.about
    yield f"    {about['command']}"
    yield ""
    yield f"{about['machine']}; torch {about['torch']}, diffusers {about['diffusers']}; TF32: {about['tf32']}."
    yield f"A large bfloat16 matrix product reaches {results.peak / 1e12:.4g} TFLOP/s."


def markdown(results: Results) -> Iterator[str]:
    """The page."""
    yield from heading(results)
    for name, (timed, timings) in results.workloads.items():
        yield from table(name, timed, timings, results.peak)
    if results.failed:
        yield from ("", *(f"- {name}: {reason}" for name, reason in results.failed.items()))


def write(results: Results, out: Path | None) -> None:
    """Both files, whole."""
    if out is not None:
        write_text(out / "gpu.json", json.dumps(results.as_json(), indent=1) + "\n")
        write_text(out / "gpu.md", "\n".join(markdown(results)) + "\n")


if __name__ == "__main__":
    main()
