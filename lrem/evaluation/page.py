"""One evaluation as one HTML page to hand to a colleague: it loads nothing from the network."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from lrem.data.files import atomic_file
from lrem.evaluation.charts import short
from lrem.evaluation.conclusions import headline, scope, verdict
from lrem.evaluation.formatting import finite, finite_interval, flatten, percent, plain, probability
from lrem.evaluation.page_tables import cost_chart, measure_panel, probes, systems_table
from lrem.evaluation.report_view import view_of

FILTERS = (finite, finite_interval, flatten, percent, plain, probability, short, verdict)


def write_page(report: dict[str, Any], path: Path) -> Path:
    """Write the report as one HTML file, atomically; returns `path`. Scores are shares, 0 to 1; the page shows percent.

    `systems` (name → slice → measure → share) and `counts` are required. Every other key may be absent or empty, and
    its section is then left out: title, made (ISO time), commit, k, measures (key → label), primary, names, slices,
    intervals (95 %), unjudged, comparisons (difference: a less b), cost, overrides, routing, lengths, fusion, judge,
    gallery (gain: a share of the primary measure), settings, versions.

    Raises:
        DataError: the report has no systems.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {function.__name__: function for function in FILTERS}
    view = view_of(report)
    all_queries = [("all", measure) for measure in view.measures]
    text = pages.get_template("page.html").render(
        view=view,
        scope=scope(view),
        headline=headline(view),
        main=systems_table(view, "All queries", view.measures.values(), all_queries),
        panels=[measure_panel(view, measure) for measure in view.measures],
        cost_chart=cost_chart(view),
        probes=list(probes(view)),
    )
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")  # titles may contain unpaired surrogates
    return path
