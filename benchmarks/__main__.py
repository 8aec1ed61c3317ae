"""Times every workload and prints tables."""

import argparse
import dataclasses
import json
import platform
from pathlib import Path

import torch

from benchmarks.timing import interleave, peak_flops
from benchmarks.workloads import DEFAULT, WORKLOADS
from sfumato.engine import native


def main() -> None:
    """Runs the workloads whose name contains `--only`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="run the workloads whose name contains this")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    peaks = {"float32": peak_flops(torch.float32), "bf16": peak_flops(torch.bfloat16)}
    results: dict[str, object] = {
        "machine": f"{platform.machine()}, {torch.cpu.get_capabilities().get('cpu_name', platform.processor())}",
        "torch": torch.__version__,
        "threads": options.threads,
        "kernels": native.describe(),
        "peak_flops_per_cpu_second": peaks,
    }
    print(*(f"{name}: {value}" for name, value in results.items()), sep="\n")
    for name, build in WORKLOADS.items():
        if options.only.lower() not in name.lower():
            continue
        workload = build()
        timings = interleave(workload.candidates, options.rounds)
        base = timings[DEFAULT].cpu_seconds
        print(f"\n## {name} ({workload.flops / 1e9:.1f} GFLOP)\n")
        print("| | CPU ms | wall ms | ratio | of the peak | largest difference |\n|---|---|---|---|---|---|")
        for candidate, timing in timings.items():
            peak = peaks["bf16" if "bf16" in candidate else "float32"]
            used = workload.flops / timing.cpu_seconds / peak
            print(
                f"| {candidate} | {timing.cpu_seconds * 1e3:.1f} | {timing.wall_seconds * 1e3:.1f} "
                f"| {base / timing.cpu_seconds:.2f} | {used:.0%} | {timing.difference:.1e} |",
                flush=True,
            )
        results[name] = {candidate: dataclasses.asdict(timing) for candidate, timing in timings.items()}
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
