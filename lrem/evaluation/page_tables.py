"""The tables of the report page, with the charts that go with them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from markupsafe import Markup

from lrem.evaluation import charts
from lrem.evaluation.formatting import finite, percent, plain
from lrem.evaluation.report_view import MAX_NAME, ReportView, SliceScores, measure_keys, score_at

VARIANT_LABELS = {"gold": "oracle"}  # key of an override → what the page shows; other keys are shown unchanged


class ProbeText(NamedTuple):
    """The words of a probe: its title, the heading of its first column, and one sentence on what it varies."""

    title: str
    heading: str
    text: str


ROUTING = ProbeText("When to reason", "mode", "Never, always, or when the model decides to (auto).")
PROBES = {
    "overrides": ProbeText(
        "Override of the reasoning", "reasoning", "The same model embeds the query with another text."
    ),
    "lengths": ProbeText("Length of the reasoning", "tokens", "The reasoning is truncated to this number of tokens."),
    "fusion": ProbeText(
        "Several reasonings per query", "reasonings", "The query embedding is the mean over this number of reasonings."
    ),
}


class TableCell(NamedTuple):
    """What a cell shows, the value its column is sorted by, the small print below, and whether to mark it as best."""

    text: str
    sort: float | None = None
    small: str = ""
    best: bool = False


class PageTable(NamedTuple):
    """A table; the first of `columns` is the heading above the row names."""

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[TableCell]]]


class MeasurePanel(NamedTuple):
    """One measure by slice: a table and a bar chart."""

    name: str
    selected: bool
    table: PageTable
    chart: Markup


class Probe(NamedTuple):
    """What a probe measured: a table by slice, and a curve if its variants are numbers."""

    title: str
    text: str
    table: PageTable
    chart: Markup | None


def systems_table(
    view: ReportView, caption: str, headings: Iterable[str], columns: Sequence[tuple[str, str]]
) -> PageTable:
    """Build a table with one row per system and one column per (slice, measure).

    The highest value of each column is marked if there are at least two systems.
    """
    systems = list(view.report["systems"])
    scores = [[s for name in systems if (s := view.score(name, *column)) is not None] for column in columns]
    tops = [max(values) if len(systems) > 1 and values else None for values in scores]
    rows = []
    for name in systems:
        cells = [_share_cell(view.score(name, *column), view.interval(name, *column)) for column in columns]
        marked = [cell._replace(best=cell.sort == top is not None) for cell, top in zip(cells, tops, strict=True)]
        rows.append((view.name(name), marked))
    return PageTable(f"{caption}, percent", ["system", *headings], rows)


def measure_panel(view: ReportView, measure: str) -> MeasurePanel:
    """Build the panel of one measure."""
    label, systems = view.measures[measure], list(view.report["systems"])
    columns = [(name, measure) for name in view.slices]
    table = systems_table(view, f"{label} by group of queries", map(view.slice_heading, view.slices), columns)
    values = [[view.score(system, name, measure) for name in view.slices] for system in systems]
    intervals = [[view.interval(system, name, measure) for name in view.slices] for system in systems]
    chart = charts.bars(view.slices, values, intervals, f"{label}, %", f"bars{list(view.measures).index(measure)}")
    return MeasurePanel(label, measure == view.primary, table, Markup(chart))


def cost_chart(view: ReportView) -> Markup | None:
    """Draw quality against latency, or return None if no system has both."""
    points = {}
    for i, system in enumerate(view.report["systems"]):
        ms = finite(view.section("cost").get(system, {}).get("ms_per_query"))
        score = view.score(system, "all", view.primary)
        if ms and score is not None:
            points[i] = (ms, score)
    label = f"{view.measures.get(view.primary)}, %"
    return Markup(charts.scatter(points, "ms per query", label, "cost")) if points else None


def probes(view: ReportView) -> Iterator[Probe]:
    """Build the probes that the report has."""
    if routing := view.section("routing"):
        cost_columns = {
            "queries with reasoning, %": [_share_cell(row.get("thinks")) for row in routing.values()],
            "ms per query": [
                TableCell(plain(row.get("ms_per_query")), finite(row.get("ms_per_query"))) for row in routing.values()
            ],
        }
        scores = {name: row.get("scores") or {} for name, row in routing.items()}
        yield _probe(view, "routing", ROUTING, scores, cost_columns)
    for key, words in PROBES.items():
        if scores := view.section(key):
            yield _probe(view, key, words, scores, {})


def _probe(
    view: ReportView,
    key: str,
    words: ProbeText,
    scores: SliceScores,
    extra_columns: Mapping[str, list[TableCell]],
) -> Probe:
    present = set(measure_keys(scores))
    measure = next((m for m in [view.primary, *view.measures, *sorted(present)] if m in present), "")
    slices = [name for name in view.slices if any(name in row for row in scores.values())]
    rows = [
        (
            charts.short(VARIANT_LABELS.get(variant, variant), MAX_NAME),
            [*cells, *(_share_cell(score_at(scores, variant, name, measure)) for name in slices)],
        )
        for variant, *cells in zip(scores, *extra_columns.values(), strict=True)
    ]
    label = view.measures.get(measure, measure)
    columns = [words.heading, *extra_columns, *map(view.slice_heading, slices)]
    table = PageTable(f"{label} by {words.heading}, percent", columns, rows)
    chart = None
    if key in ("lengths", "fusion") and len(scores) > 1:
        steps = sorted(scores, key=float)
        lines = [name for name in slices if name in ("all", "hard")] or slices[:1]
        series = {name: [score_at(scores, step, name, measure) for step in steps] for name in lines}
        chart = Markup(charts.curves([float(step) for step in steps], series, words.heading, f"{label}, %", key))
    return Probe(words.title, words.text, table, chart)


def _share_cell(value: float | None, ends: tuple[float, float] | None = None) -> TableCell:
    return TableCell(percent(value), finite(value), f"{percent(ends[0])} – {percent(ends[1])}" if ends else "")
