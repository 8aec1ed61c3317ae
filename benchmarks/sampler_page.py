"""The results of `benchmarks.samplers` as JSON, Markdown tables, and one page with charts."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sfumato.checkpoint import write_text
from sfumato.report.svg import Series, line_chart, standalone
from sfumato.report.templating import render

Row = Mapping[str, Any]
TEMPLATES = Path(__file__).parent / "templates"
FAMILIES = (
    ("The paper's, and Euler", ("ddpm", "ddim", "plms", "euler")),
    ("Multistep, one call a step", ("auto", "dpmpp-2m", "unipc", "dpmpp-3m")),
    ("Two calls a step", ("heun", "dpmpp-2s", "edm")),
    ("With new noise at each step", ("dpmpp-2m-sde", "ddpm", "edm")),
)
SUMMARY_SAMPLERS = ("ddim", "dpmpp-2m", "unipc", "heun", "ddpm", "plms")
"""The samplers of the one chart that is a file of its own."""
SCORES = (("facts", "share of facts that hold"), ("frechet", "Fréchet distance"))


def write_results(folder: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """samplers.json, samplers.md and samplers.html in the folder, and a chart of each score."""
    write_text(folder / "samplers.json", json.dumps({**about, "measurements": list(rows)}, indent=1) + "\n")
    write_text(folder / "samplers.md", markdown(about, rows))
    write_text(folder / "samplers.html", page(about, rows))
    for name, title in _present(rows):
        chart = _chart(rows, name, title, SUMMARY_SAMPLERS)
        if chart is not None:
            write_text(folder / f"{name}.svg", standalone(chart))


def markdown(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A table of each score over calls, and one of each sweep."""
    parts = [f"# Samplers\n\n{_intro(about)}\n"]
    for name, title in _present(rows):
        head, body = _by_calls(rows, name)
        parts.append(f"## {title.capitalize()} by network calls\n\n{_markdown_table(head, body)}\n")
    for sweep in ("scale", "interval"):
        head, body = _sweep(rows, sweep)
        if body:
            parts.append(f"## Guidance {sweep}\n\n{_markdown_table(head, body)}\n")
    return "\n".join(parts)


def page(about: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """One file of HTML that needs no other."""
    return render("samplers.html", TEMPLATES, intro=_intro(about), sections=[*_by_score(rows), *_by_sweep(rows)])


def _by_score(rows: Sequence[Row]) -> list[dict[str, Any]]:
    sections = []
    for name, title in _present(rows):
        best = max if name == "facts" else min
        head, body = _by_calls(rows, name)
        marked = [i for i, line in enumerate(body) if line[-1] == best([b[-1] for b in body], key=_number)]
        charts = _charts(rows, name, title)
        heading = f"{title.capitalize()} by network calls"
        sections.append({"title": heading, "charts": charts, "head": head, "body": body, "marked": marked})
    return sections


def _by_sweep(rows: Sequence[Row]) -> list[dict[str, Any]]:
    sections = []
    for sweep in ("scale", "interval"):
        head, body = _sweep(rows, sweep)
        charts = _scale_charts(rows) if sweep == "scale" else []
        sections.append({"title": f"Guidance {sweep}", "charts": charts, "head": head, "body": body, "marked": ()})
    return [section for section in sections if section["body"]]


def _intro(about: Mapping[str, Any]) -> str:
    machine = about["machine"]
    return (
        f"Model {about['model']}, {about['images']} images a measurement, guidance {about['guidance']:g}, features "
        f"of {about['features']['name']}; {machine['device']}, {machine['threads']} threads."
    )


def _present(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(name, title) for name, title in SCORES if any(name in row for row in rows)]


def _of(rows: Sequence[Row], sweep: str) -> list[Row]:
    return [row for row in rows if row["cell"]["sweep"] == sweep]


def _charts(rows: Sequence[Row], score: str, title: str) -> list[tuple[str, Markup]]:
    """A chart a family, over the calls on a logarithmic axis."""
    charts = [(family, _chart(rows, score, title, names)) for family, names in FAMILIES]
    return [(family, chart) for family, chart in charts if chart is not None]


def _chart(rows: Sequence[Row], score: str, title: str, names: Sequence[str]) -> Markup | None:
    """A score of the named samplers; None where none of them was measured."""
    series = []
    for tone, name in enumerate(names):
        points = {row["calls"]: row[score] for row in _of(rows, "calls") if row["cell"]["sampler"] == name}
        if points:
            series.append(Series(name, sorted(points.items()), tone))
    if not series:
        return None
    return line_chart(series, "network calls", title, log=score == "frechet", width=1036, log_x=True)


def _scale_charts(rows: Sequence[Row]) -> list[tuple[str, Markup]]:
    swept = sorted(_of(rows, "scale"), key=lambda row: row["cell"]["guidance"])
    return [
        ("", line_chart([Series("auto", [(r["cell"]["guidance"], r[name]) for r in swept])], "scale", title))
        for name, title in _present(swept)
    ]


def _by_calls(rows: Sequence[Row], score: str) -> tuple[list[str], list[list[str]]]:
    """A row a sampler, a column a number of calls: what was reached with that many, or just below."""
    swept = _of(rows, "calls")
    columns = sorted({row["cell"]["budget"] for row in swept})
    names = list(dict.fromkeys(row["cell"]["sampler"] for row in swept))
    show = _shown(score)
    body = []
    for name in names:
        reached = {row["cell"]["budget"]: row[score] for row in swept if row["cell"]["sampler"] == name}
        body.append([name, *(show(reached[c]) if c in reached else "" for c in columns)])
    return ["sampler", *(str(c) for c in columns)], body


def _sweep(rows: Sequence[Row], sweep: str) -> tuple[list[str], list[list[str]]]:
    swept = _of(rows, sweep)
    scores = _present(swept)
    head = ["scale", *(["interval"] if sweep == "interval" else []), *(title for _, title in scores)]
    body = []
    for row in swept:
        cell = row["cell"]
        times = [f"{cell['interval'][0]:g} to {cell['interval'][1]:g}"] if sweep == "interval" else []
        body.append([f"{cell['guidance']:g}", *times, *(_shown(name)(row[name]) for name, _ in scores)])
    return head, body


def _shown(score: str) -> Callable[[float], str]:
    return (lambda value: f"{value:.1%}") if score == "facts" else (lambda value: f"{value:.2f}")


def _number(cell: str) -> float:
    return float(cell.rstrip("%") or "nan")


def _markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
