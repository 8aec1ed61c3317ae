"""The page: one HTML file that carries its style, curves and pictures and asks no other file for anything."""

from collections.abc import Sequence

from sfumato.report import sections
from sfumato.report.gallery import Gallery
from sfumato.report.html import Markup, element
from sfumato.report.result import DemoResult
from sfumato.report.style import CSS


def render(
    result: DemoResult,
    gallery: Gallery,
    stage_one: sections.LogLines,
    stage_two: sections.LogLines,
    commands: Sequence[tuple[str, Sequence[str]]],
) -> str:
    """The whole page. `stage_one`, `stage_two`: lines of the runs' logs; `commands`: (remark, lines to type) each."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"sfumato demo: {result.headline['facts_right']:.1%} of facts right"),
        element("style", Markup(CSS)),
    )
    main = element(
        "main",
        sections.reconstructions(result, gallery),
        sections.samples(result, gallery),
        sections.denoising(result, gallery),
        sections.curves(result, stage_one, stage_two),
        sections.scores(result),
        sections.speed(result),
        sections.commands(commands),
    )
    body = element("body", sections.opening(result), main, sections.closing(result))
    return "<!doctype html>\n" + element("html", head, body, lang="en") + "\n"
