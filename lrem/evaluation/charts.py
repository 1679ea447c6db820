"""The charts of the report page: each function takes numbers and returns an `<svg>` element to embed in HTML.

matplotlib draws; each colour is then replaced by the page's CSS variable of that name, so that one picture serves the
light and the dark theme. The legend is part of the page: every chart shows a system by its number in that legend.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

INK, SOFT, LINE, CARD = "#1b1f24", "#59636e", "#d5dae0", "#fefefe"
SERIES = ("#0b5cad", "#c65d00", "#0f7b4c", "#7b4fb5", "#b3303b", "#0b8091", "#8a6d00", "#b8478f")
VARIABLES = {INK: "ink", SOFT: "soft", LINE: "line", CARD: "card"} | {c: f"s{i}" for i, c in enumerate(SERIES, 1)}
DRAWING = {
    "svg.fonttype": "none",  # keep text as text, so that the browser can render any script
    "text.parse_math": False,  # a dollar sign in a name does not start a formula
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "font.sans-serif": ["DejaVu Sans"],  # for measuring; the page sets its own font
    "font.size": 10,
}

Values = Sequence[float | None]


def bars(
    groups: Sequence[str],
    series: Sequence[Values],
    intervals: Sequence[Sequence[tuple[float, float] | None]],
    label: str,
    name: str,
) -> str:
    """Draw groups of bars with whiskers, one bar per series.

    Args:
        series, intervals: [S][G], shares; None leaves out the bar or the whisker.
        name: prefix of the ids in this chart; it must be unique within a page.
    """
    with _axes(max(8.0, 0.17 * len(groups) * (len(series) + 1)), 3.4) as (figure, axes):
        width = 0.84 / len(series)
        for i, (values, whiskers) in enumerate(zip(series, intervals, strict=True)):
            for group, (value, whisker) in enumerate(zip(values, whiskers, strict=True)):
                x = group + (i - (len(series) - 1) / 2) * width
                if value is not None:
                    axes.bar(x, value, 0.9 * width, color=colour(i))
                if value is not None and whisker is not None:
                    axes.plot([x, x], whisker, color=INK, linewidth=1)
        axes.set_xticks(range(len(groups)), [short(group) for group in groups])
        axes.set(ylabel=short(label, 40), xlim=(-0.5, len(groups) - 0.5))
        axes.set_ylim(0, min(1.0, axes.get_ylim()[1]))
        axes.grid(axis="x", visible=False)
        return _inline(figure, name, f"Bar chart: {label}, by group of queries")


def scatter(points: Mapping[int, tuple[float, float]], x_label: str, y_label: str, name: str) -> str:
    """Draw numbered points; the x axis is logarithmic if x spans more than a factor of ten.

    Args:
        points: position in the legend, from 0 → (x > 0, y as a share).
    """
    with _axes(5.5, 3.4) as (figure, axes):
        for i, (x, y) in points.items():
            axes.plot(x, y, "o", markersize=17, color=colour(i), markeredgecolor=CARD)
            axes.annotate(str(i + 1), (x, y), ha="center", va="center_baseline", color=CARD, weight="bold", size=9)
        x_values = [x for x, _ in points.values()]
        if max(x_values) > 10 * min(x_values):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.minorticks_off()
        else:
            axes.set_xlim(0, 1.12 * max(x_values))
        axes.margins(0.12, 0.18)
        axes.set(xlabel=x_label, ylabel=short(y_label, 40))
        return _inline(figure, name, f"Scatter chart: {y_label}, against {x_label}")


def curves(x: Sequence[float], series: Mapping[str, Values], x_label: str, y_label: str, name: str) -> str:
    """Draw one line per series, labelled at its right end.

    Args:
        x: [N], rising. series: name → [N], shares; None is a gap.
    """
    with _axes(5.0, 3.0) as (figure, axes):
        for i, (title, values) in enumerate(series.items()):
            heights = [math.nan if value is None else value for value in values]
            axes.plot(x, heights, "o-", color=colour(i), markersize=5)
            drawn = [(at, y) for at, y in zip(x, heights, strict=True) if not math.isnan(y)]
            if drawn:
                axes.annotate(short(title), drawn[-1], (7, 0), textcoords="offset points", va="center", color=colour(i))
        axes.set_xticks(x, [f"{value:g}" for value in x])
        axes.margins(0.05, 0.2)
        axes.set(xlabel=x_label, ylabel=short(y_label, 40))
        return _inline(figure, name, f"Line chart: {y_label}, by {x_label}")


def colour(position: int) -> str:
    """Return the colour of a position in the legend, from 0; colours repeat after the eighth."""
    return SERIES[position % len(SERIES)]


def short(text: str, limit: int = 18) -> str:
    """Return `text` as one line of at most `limit` characters, without those that XML forbids.

    >>> short("knowledge\\nof materials and care")
    'knowledge of mate…'
    """
    line = "".join(character if character.isprintable() else " " for character in text)
    return line if len(line) <= limit else line[: limit - 1] + "…"


@contextmanager
def _axes(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """Open a figure without pyplot and its global state; the style applies until it is drawn and written."""
    with rc_context(DRAWING), warnings.catch_warnings():
        # For a script that matplotlib's font lacks only the measured width is wrong: the browser draws the text.
        warnings.filterwarnings("ignore", message="Glyph")
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        axes.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}")
        yield figure, axes


def _inline(figure: Figure, name: str, title: str) -> str:
    """Return the figure as an element without namespaces, metadata or style sheet, with unique ids and CSS colours."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", transparent=True)
    root = ElementTree.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag.endswith(("}metadata", "}style"))]:
            parent.remove(child)
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        node.attrib = {key.rpartition("}")[2]: _themed(key, text, name) for key, text in node.attrib.items()}
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib |= {
        "class": "chart",
        "role": "img",
        "aria-label": title,
        "style": f"--full: {width / 12:.1f}rem; width: var(--full)",
    }
    return ElementTree.tostring(root, encoding="unicode")


def _themed(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    text = re.sub(r"^#(?=\D)|(?<=url\()#", f"#{name}-", text) if key.endswith(("href", "clip-path")) else text
    return re.sub(r"#[0-9a-f]{6}\b", lambda match: _variable(match[0]), text) if key in ("style", "fill") else text


def _variable(code: str) -> str:
    return f"var(--{VARIABLES[code]})" if code in VARIABLES else code
