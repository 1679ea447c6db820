"""The charts of the report page: heights and positions read back from the SVG."""

import re

import pytest

from lrem.evaluation.charts import bars, curves, scatter


def test_charts_draw_the_given_numbers() -> None:
    drawn = bars(["all", "<b>"], [[0.2, None], [0.4, 0.1]], [[(0.1, 0.3), None], [None, None]], "P, %", "one")
    paths = re.findall(r'<path d="M ([^"]*?)z " clip-path="url\(#one-\w+\)" style="fill: var\(--s(\d)\)', drawn)
    drawn_bars = []
    for path, series in paths:
        heights = [float(y) for y in re.findall(r"[-\d.]+ ([-\d.]+)", path)]
        drawn_bars.append((series, max(heights) - min(heights)))
    assert [series for series, _ in drawn_bars] == ["1", "2", "2"]
    assert drawn_bars[1][1] / drawn_bars[0][1] == pytest.approx(2, rel=1e-3)
    assert drawn_bars[0][1] / drawn_bars[2][1] == pytest.approx(2, rel=1e-3)
    assert "&lt;b&gt;" in drawn
    points = scatter({0: (1.0, 0.1), 2: (100.0, 0.3)}, "ms", "P, %", "two")
    assert re.findall(r"<use [^>]*fill: var\(--s(\d)\)", points) == ["1", "3"]
    lines = curves([4, 8, 16], {"all": [0.1, None, 0.3]}, "tokens", "P, %", "three")
    assert re.findall(r">(4|8|16|all)<", lines) == ["4", "8", "16", "all"]
