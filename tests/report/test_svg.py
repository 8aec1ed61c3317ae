"""Charts: points land where the axes say, ticks are round, awkward values are left out."""

import re
from xml.etree import ElementTree

import pytest

from sfumato.report.svg import Axis, Series, dot_plot, line_chart, linear_ticks, log_ticks, number, standalone


def places(chart: str) -> list[tuple[float, float]]:
    (found,) = re.findall(r'polyline points="([^"]+)"', chart)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found.split())]


def test_axes_are_linear_or_logarithmic() -> None:
    assert Axis(0, 10, 100, 0)(2.5) == pytest.approx(75)
    assert Axis(0.01, 1, 0, 100, log=True)(0.1) == pytest.approx(50)
    assert Axis(3, 3, 0, 100)(3) == 50


def test_ticks_are_round_and_inside() -> None:
    assert linear_ticks(0, 2500) == [0, 500, 1000, 1500, 2000, 2500]
    assert linear_ticks(17.2, 31.4) == [20, 25, 30]
    assert log_ticks(0.03, 1.2) == pytest.approx([0.05, 0.1, 0.2, 0.5, 1])
    assert log_ticks(1e-4, 1) == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])


@pytest.mark.parametrize(("value", "label"), [(0.05, "0.05"), (2.0, "2"), (1500, "1.5k"), (2e6, "2M")])
def test_labels(value: float, label: str) -> None:
    assert number(value) == label


def test_a_line_goes_up_where_values_do() -> None:
    (x0, y0), (x1, y1), (x2, y2) = places(line_chart([Series("a", [(0, 1), (5, 2), (10, 3)])], "steps", "loss"))
    assert x1 == pytest.approx((x0 + x2) / 2)
    assert y1 == pytest.approx((y0 + y2) / 2)
    assert y2 < y0  # pixels count downwards


def test_equal_factors_are_equal_steps_on_a_log_axis() -> None:
    ys = [y for _, y in places(line_chart([Series("a", [(1, 0.01), (2, 0.1), (3, 1)])], "steps", "loss", log=True))]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)


def test_values_without_a_place_are_left_out() -> None:
    points = [(1.0, 1.0), (2.0, float("nan")), (3.0, 0.0), (4.0, -1.0), (5.0, 2.0)]
    assert len(places(line_chart([Series("a", points)], "x", "y", log=True))) == 2
    assert len(places(line_chart([Series("a", points)], "x", "y"))) == 4
    assert "No values of y" in line_chart([Series("a", [])], "x", "y")
    assert "<circle" in line_chart([Series("a", [(1, 1)])], "x", "y")


def test_a_series_without_a_name_is_not_in_the_legend() -> None:
    points = [(1.0, 1.0), (2.0, 3.0)]
    seeds = [Series("noise", points), Series("", points, faint=True), Series("plain", points, 1)]
    chart = line_chart(seeds, "x", "y")
    assert chart.count("<polyline") == 3
    entries = line_chart([seeds[0], seeds[2]], "x", "y")
    for name in ("noise", "plain"):
        assert [line for line in chart.splitlines() if f">{name}</text>" in line] == [
            line for line in entries.splitlines() if f">{name}</text>" in line
        ], "at the same place"
    assert chart.count('y1="10"') == 2, "a stroke for each name"


def test_long_runs_keep_their_last_point_and_few_others() -> None:
    chart = line_chart([Series("a", [(x, x + 1) for x in range(5001)])], "x", "y")
    found = places(chart)
    assert len(found) <= 401
    assert found[-1][0] == max(x for x, _ in found)


def test_a_dot_plot_names_every_row_and_skips_missing_marks() -> None:
    chart = dot_plot(["count", "shape"], [("generated", [0.5, None]), ("chance", [0.25, 0.125])])
    assert "generated: 50.0%" in chart
    assert "chance: 12.5%" in chart
    assert chart.count("generated:") == 1
    assert ">shape<" in chart


def test_a_chart_as_a_file_brings_its_colours_along() -> None:
    written = standalone(line_chart([Series("a < b", [(1, 2), (2, 3)])], "calls", "facts"))
    root = ElementTree.fromstring(written)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.findtext("{http://www.w3.org/2000/svg}style") or ""
    used = set(re.findall(r"var\((--[\w-]+)\)", style))
    assert used
    assert all(f"{name}:" in style for name in used)
    assert root.find("{http://www.w3.org/2000/svg}polyline") is not None
