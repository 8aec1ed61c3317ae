"""Results as Markdown: the run's machine and command, a table for each workload, and how cost grows."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.timing import Timing
from benchmarks.workloads import Workload

Timings = Mapping[str, Timing]


@dataclass
class Results:
    """Of one run; `growth` by the title of its table, then by the place in the series."""

    about: dict[str, Any]
    peaks: dict[str, float]
    """Operations per CPU second by number format."""
    workloads: dict[str, tuple[Workload, Timings]] = field(default_factory=dict)
    growth: dict[str, dict[str, Timings]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Everything, with what the tables derive from it."""
        return {
            "about": self.about,
            "peak_flops_per_cpu_second": self.peaks,
            "workloads": {name: _workload_json(*found, self.peaks) for name, found in self.workloads.items()},
            "growth": {
                title: {place: _timings_json(timings) for place, timings in series.items()}
                for title, series in self.growth.items()
            },
        }


def seconds_of(workload: Workload, timing: Timing) -> float:
    """What the workload's ratios are of."""
    return timing.cpu_seconds if workload.clock == "cpu" else timing.wall_seconds


def utilisation(workload: Workload, name: str, timing: Timing, peaks: Mapping[str, float]) -> float | None:
    """The share of the peak that a candidate reaches; None where arithmetic is not counted."""
    peak = peaks.get("bf16" if "bf16" in name else "float32")
    return None if workload.flops is None or peak is None else workload.flops / timing.cpu_seconds / peak


def markdown(results: Results) -> str:
    """The page's section."""
    return "\n".join(_lines(results)) + "\n"


def table(name: str, workload: Workload, timings: Timings, peaks: Mapping[str, float]) -> Iterator[str]:
    """One workload; ratios above 1 are faster than the first row."""
    base = seconds_of(workload, next(iter(timings.values())))
    arithmetic = "" if workload.flops is None else f" ({workload.flops / 1e9:.1f} GFLOP)"
    yield from ("", f"## {name}{arithmetic}", "")
    yield f"| | CPU ms | wall ms | first call s | {workload.unit} / s | × | of the peak | memory MiB | difference |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for candidate, timing in timings.items():
        seconds = seconds_of(workload, timing)
        used = utilisation(workload, candidate, timing, peaks)
        memory = "–" if timing.peak_memory is None else f"{timing.peak_memory / 2**20:.0f}"
        yield (
            f"| {candidate} | {timing.cpu_seconds * 1e3:.1f} | {timing.wall_seconds * 1e3:.1f} "
            f"| {timing.first_seconds:.2f} | {workload.samples / seconds:.3g} | {base / seconds:.2f} "
            f"| {'–' if used is None else f'{used:.0%}'} | {memory} | {timing.difference:.1e} |"
        )


def growth_table(title: str, series: Mapping[str, Timings]) -> Iterator[str]:
    """CPU milliseconds of every candidate along a series, and over the last place's."""
    yield from ("", f"## {title}", "")
    yield f"| CPU ms (of the last) | {' | '.join(series)} |"
    yield "|---" * (len(series) + 1) + "|"
    for candidate in next(iter(series.values())):
        last = list(series.values())[-1][candidate].cpu_seconds
        cells = [timings[candidate].cpu_seconds for timings in series.values()]
        yield f"| {candidate} | {' | '.join(f'{cell * 1e3:.0f} ({cell / last:.3g})' for cell in cells)} |"


def heading(results: Results) -> Iterator[str]:
    """The command and the machine."""
    about = results.about
    yield f"    {about['command']}"
    yield ""
    yield f"{about['machine']}; {about['threads']} threads; torch {about['torch']}, diffusers {about['diffusers']};"
    yield f"{about['kernels']}. Peak per CPU second: " + ", ".join(
        f"{name} {peak / 1e9:.0f} GFLOP/s" for name, peak in results.peaks.items()
    )


def _lines(results: Results) -> Iterator[str]:
    yield from heading(results)
    for name, (workload, timings) in results.workloads.items():
        yield from table(name, workload, timings, results.peaks)
    for title, series in results.growth.items():
        yield from growth_table(title, series)


def _workload_json(workload: Workload, timings: Timings, peaks: Mapping[str, float]) -> dict[str, Any]:
    base = seconds_of(workload, next(iter(timings.values())))
    candidates = {
        name: {
            **asdict(timing),
            "throughput": workload.samples / seconds_of(workload, timing),
            "ratio": base / seconds_of(workload, timing),
            "utilisation": utilisation(workload, name, timing, peaks),
        }
        for name, timing in timings.items()
    }
    facts = {name: getattr(workload, name) for name in ("samples", "unit", "flops", "clock")}
    return {**facts, "candidates": candidates}


def _timings_json(timings: Timings) -> dict[str, Any]:
    return {name: asdict(timing) for name, timing in timings.items()}
