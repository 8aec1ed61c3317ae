"""Times every workload beside diffusers' code for the same, in one run, and prints tables."""

import argparse
import gc
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.choice import chosen
from benchmarks.original import checkout
from benchmarks.page import Results, growth_table, heading, markdown, table
from benchmarks.table import GROWTH, WORKLOADS
from benchmarks.timing import interleave, peak_flops
from benchmarks.workloads import Scope, usual_scope
from sfumato.checkpoint import write_text
from sfumato.engine import native
from sfumato.report.machine import processor


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the workloads whose name contains `--only`, and with `--growth` the two series too."""
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    scope = usual_scope(options.compiled, options.original)
    results = begun(arguments, options.threads, scope)
    print(*heading(results), sep="\n", flush=True)
    for name, build in chosen(WORKLOADS, options.only).items():
        workload = build(scope)
        timings = interleave(workload.candidates, options.rounds)
        print(*table(name, workload, timings, results.peaks), sep="\n", flush=True)
        workload.candidates.clear()  # their networks
        gc.collect()
        results.workloads[name] = workload, timings
        write(results, options.out)
    for title, series in GROWTH.items() if options.growth else ():
        found = results.growth.setdefault(title, {})
        for place, build in chosen(series, options.only).items():
            found[place] = interleave(build(scope).candidates, options.rounds)
            gc.collect()
            write(results, options.out)
        if found:
            print(*growth_table(title, found), sep="\n", flush=True)
        else:
            del results.growth[title]
    if options.out:
        print(f"\nresults: {options.out / 'bench.json'}, bench.md")


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default="", help="run the workloads whose name contains this")
    parser.add_argument("--rounds", type=int, default=7, help="the medians are of so many")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compiled", action="store_true", help="time torch.compile of diffusers too: minutes each")
    parser.add_argument(
        "--original",
        type=checkout,
        metavar="PATH",
        help="also time the code of this checkout of CompVis/latent-diffusion",
    )
    parser.add_argument("--growth", action="store_true", help="also how a call grows with the latent's size and with f")
    parser.add_argument("--out", type=Path, help="a folder for bench.json and bench.md, written after each workload")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.threads < 1:
        parser.error("--rounds and --threads take at least 1")
    if options.list:
        print(*WORKLOADS, *(place for series in GROWTH.values() for place in series), sep="\n")
        raise SystemExit(0)
    growing = list(GROWTH.values()) if options.growth else []
    if not any(chosen(builds, options.only) for builds in (WORKLOADS, *growing)):
        parser.error(f"--only {options.only!r} names no workload; --list prints them")
    return options


def begun(arguments: Sequence[str] | None, threads: int, scope: Scope) -> Results:
    """Results without workloads: the machine, and what it reaches."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()  # it warns at every cast
    peaks = {"float32": peak_flops(torch.float32)}
    if scope.half:
        peaks["bf16"] = peak_flops(torch.bfloat16)
    about = {
        "command": shlex.join(["python", "-m", "benchmarks", *(sys.argv[1:] if arguments is None else arguments)]),
        "machine": processor(),
        "threads": threads,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "kernels": native.describe(),
    }
    return Results(about, peaks)


def write(results: Results, out: Path | None) -> None:
    """Both files, whole."""
    if out is not None:
        write_text(out / "bench.json", json.dumps(results.as_json(), indent=1) + "\n")
        write_text(out / "bench.md", markdown(results))


if __name__ == "__main__":
    main()
