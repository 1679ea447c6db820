"""One evaluation as one HTML page to show to a colleague: it loads nothing, and what is absent is left out.

Knows the shape of the report (see `write_page`) and what its numbers allow one to say; computes no metric and no test.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from lrem.data.files import atomic_file
from lrem.errors import DataError
from lrem.evaluation import charts

MISSING = "–"
ALPHA = 0.05
NAME = 80  # characters of a name that are shown
PROBES = {  # key → title, what heads its rows, what it shows
    "overrides": ("Other reasoning in place of its own", "reasoning", "The same model embeds another text."),
    "lengths": ("Length of the reasoning", "tokens", "The reasoning is cut after so many tokens."),
    "fusion": ("Several reasonings a query", "reasonings", "The mean of the embeddings of so many reasonings."),
}

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]  # row → slice → measure → share


class Cell(NamedTuple):
    """What a table shows, what its column is sorted by, and what stands below in small print."""

    text: str
    sort: float | None = None
    small: str = ""
    best: bool = False


class Grid(NamedTuple):
    """A table: the first of `columns` heads the rows' names."""

    caption: str
    columns: list[str]
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class Frame:
    """A report with the order and the names of its slices and measures."""

    report: Mapping[str, Any]
    slices: list[str]  # "all" first
    measures: dict[str, str]  # those that some system has → what to call them
    primary: str

    def part(self, key: str) -> Any:
        return self.report.get(key) or {}

    def name(self, system: str) -> str:
        return charts.short(str(self.part("names").get(system, system)), NAME)

    def score(self, system: str, part: str, measure: str) -> float | None:
        return _at(self.report["systems"], system, part, measure)

    def interval(self, system: str, part: str, measure: str) -> tuple[float, float] | None:
        return span(self.part("intervals").get(system, {}).get(part, {}).get(measure))

    def head(self, part: str) -> str:
        """A slice with its number of queries."""
        count = self.part("slices").get(part)
        return charts.short(part, NAME) + ("" if count is None else f" ({count:,})")


def write_page(report: dict[str, Any], path: Path) -> Path:
    """Write the report as one HTML file, atomically; returns `path`. Scores are shares, 0 to 1; the page shows percent.

    `systems` (name → slice → measure → share) and `counts` must be there. Every other key may be absent or empty:
    title, made (ISO time), commit, k, measures (key → name), primary, names, slices, intervals (95 %), unjudged,
    comparisons (difference: a less b), cost, overrides, routing, lengths, fusion, judge, gallery (gain: a share of the
    primary measure), settings, versions.

    Raises:
        DataError: the report has no system.
    """
    folder = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {f.__name__: f for f in (known, span, percent, plain, probability, verdict, flat, charts.short)}
    frame = frame_of(report)
    text = pages.get_template("page.html").render(
        frame=frame,
        measured=measured(frame),
        outcome=outcome(frame),
        main=_by_system(
            frame, "All queries", frame.measures.values(), [("all", measure) for measure in frame.measures]
        ),
        panels=[_panel(frame, measure) for measure in frame.measures],
        scatter=_scatter(frame),
        probes=list(_probes(frame)),
    )
    with atomic_file(path) as part:
        part.write_text(text, encoding="utf-8", errors="replace")  # half a surrogate pair may stand in a title
    return path


def frame_of(report: dict[str, Any]) -> Frame:
    """Order and names, from the report or, where it leaves them out, from the systems' scores.

    Raises:
        DataError: no system.
    """
    systems = report.get("systems") or {}
    if not systems:
        raise DataError("the report has no systems, so there is nothing to show: evaluate at least one")
    slices = list(dict.fromkeys([*(report.get("slices") or {}), *(part for row in systems.values() for part in row)]))
    slices.sort(key=lambda part: part != "all")
    found = list(dict.fromkeys(_keys(systems)))
    named, k = report.get("measures") or {}, report.get("k") or {}
    plain = {key: f"{name}@{k[key]}" for key, name in (("hit_rate", "HitRate"), ("precision", "Precision")) if key in k}
    order = [*(key for key in named if key in found), *(key for key in found if key not in named)]
    measures = {key: charts.short(str(named.get(key, plain.get(key, key))), NAME) for key in order}
    primary = str(report.get("primary"))
    return Frame(report, slices, measures, primary if primary in measures else next(iter(measures), ""))


def known(value: Any) -> float | None:
    """The number, or None where there is none: absent, NaN or infinite."""
    return None if value is None or not math.isfinite(value) else float(value)


def span(value: Sequence[Any] | None) -> tuple[float, float] | None:
    """[low, high] if both are numbers."""
    low, high = (known(end) for end in value) if value else (None, None)
    return None if low is None or high is None else (low, high)


def percent(share: float | None, sign: str = "") -> str:
    """One decimal, without the sign %; `sign` "+" writes the plus of a difference too.

    >>> percent(0.6125), percent(-0.02, "+"), percent(None)
    ('61.3', '−2.0', '–')
    """
    share = known(share)
    return MISSING if share is None else f"{100 * share:{sign}z.1f}".replace("-", "−")


def plain(value: float | None) -> str:
    """
    >>> plain(1234.56), plain(None)
    ('1,234.6', '–')
    """
    return MISSING if known(value) is None else f"{value:,.1f}"


def probability(p: float | None) -> str:
    """
    >>> probability(0.0004), probability(0.21)
    ('< 0.001', '0.210')
    """
    p = known(p)
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def flat(tree: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping.

    >>> flat({"a": {"b": 1, "c": {}}})
    [('a.b', 1), ('a.c', {})]
    """
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        nested = isinstance(value, Mapping) and value
        pairs += flat(value, f"{above}{key}.") if nested else [(f"{above}{key}", value)]
    return pairs


def verdict(one: Mapping[str, Any]) -> str:
    """What a comparison shows at 5 %: "significant", "not significant", "unclear" or "not tested".

    Holm's p goes before the plain one; "unclear": p is small, but the interval of the difference includes zero.

    >>> verdict({"p": 0.03, "p_holm": 0.09}), verdict({"p": 0.03, "low": -0.01, "high": 0.02})
    ('not significant', 'unclear')
    """
    p, ends = _p(one), span((one.get("low"), one.get("high")))
    with_zero = ends is not None and ends[0] <= 0 <= ends[1]
    if p is None:
        return "not tested" if ends is None else "not significant" if with_zero else "significant"
    return "not significant" if p >= ALPHA else "unclear" if with_zero else "significant"


def measured(frame: Frame) -> str:
    """What was measured, in one sentence."""
    counts, number = frame.part("counts"), len(frame.report["systems"])
    many = [f"{counts[what]:,} {what}" for what in ("queries", "items", "judgements") if counts.get(what) is not None]
    return f"Measured: {number} system{'s' * (number > 1)}{' on ' * bool(many)}{', '.join(many)}."


def outcome(frame: Frame) -> str:
    """The best system on the primary measure against the second, in one sentence that claims no more than is known."""
    scores = {name: known(frame.score(name, "all", frame.primary)) for name in frame.report["systems"]}
    ranked = sorted(((name, score) for name, score in scores.items() if score is not None), key=lambda pair: -pair[1])
    measure = frame.measures.get(frame.primary, "any measure")
    if not ranked:
        return f"No system has a score on {measure} over all queries, so none is ahead."
    said = [f"{percent(score)} %{_between(frame.interval(name, 'all', frame.primary))}" for name, score in ranked[:2]]
    best, second = frame.name(ranked[0][0]), frame.name(ranked[-1 if len(ranked) < 2 else 1][0])
    if len(ranked) == 1:
        return f"{best} reaches {said[0]} on {measure}; there is no second system to compare it with."
    if ranked[0][1] == ranked[1][1]:
        return f"{best} and {second} are level at the top: both reach {percent(ranked[0][1])} % on {measure}."
    lead = _lead(frame, ranked[0][0], ranked[1][0], ranked[0][1] - ranked[1][1])
    return f"{best} has the highest {measure}, {said[0]}, before {second} with {said[1]}: {lead}."


def _lead(frame: Frame, best: str, second: str, difference: float) -> str:
    """How sure the lead is: by the paired comparison if there is one, else by the two intervals."""
    upper, lower = (frame.interval(name, "all", frame.primary) for name in (best, second))
    overlap = None if upper is None or lower is None else upper[0] <= lower[1]
    wanted = ({best, second}, "all", frame.primary)
    given = (c for c in frame.part("comparisons") if ({c["a"], c["b"]}, c["slice"], c["measure"]) == wanted)
    one = next(given, {"a": best})
    shown, p, ends = verdict(one), _p(one), span((one.get("low"), one.get("high")))
    if shown == "not tested":
        if overlap is None:
            return f"without a test and intervals, the lead of {percent(difference)} points may be chance"
        if overlap:
            return "their intervals overlap and no paired test is given, so which of them is better stays open"
        return "their intervals do not overlap; no paired test is given"
    lead = f"the difference of {percent(difference)} points"
    lead += _between((-ends[1], -ends[0]) if ends and one["a"] != best else ends)
    holm = " after Holm's correction" if known(one.get("p_holm")) is not None else ""
    proof = "" if p is None else f" (p {'= ' if p >= 0.001 else ''}{probability(p)}{holm})"
    if shown == "significant":
        return f"{lead} is significant{proof}{', although their own intervals overlap' if overlap else ''}"
    if shown == "unclear":
        return f"{lead} is unclear: its interval includes zero, which the test{proof} rejects"
    return f"{lead} is not significant{proof}, so the two cannot be told apart here"


def _p(one: Mapping[str, Any]) -> float | None:
    holm = known(one.get("p_holm"))
    return known(one.get("p")) if holm is None else holm


def _between(ends: tuple[float, float] | None) -> str:
    return f" (95 % interval {percent(ends[0])} to {percent(ends[1])})" if ends else ""


def _share(value: float | None, ends: tuple[float, float] | None = None) -> Cell:
    return Cell(percent(value), known(value), f"{percent(ends[0])} – {percent(ends[1])}" if ends else "")


def _by_system(frame: Frame, caption: str, heads: Iterable[str], places: Sequence[tuple[str, str]]) -> Grid:
    """One column for each place, a slice and a measure; its highest is marked where there are two systems or more."""
    systems = list(frame.report["systems"])
    known_scores = [[s for name in systems if (s := frame.score(name, *place)) is not None] for place in places]
    tops = [max(scores) if len(systems) > 1 and scores else None for scores in known_scores]
    rows = []
    for name in systems:
        cells = [_share(frame.score(name, *place), frame.interval(name, *place)) for place in places]
        marked = [cell._replace(best=cell.sort == top is not None) for cell, top in zip(cells, tops, strict=True)]
        rows.append((frame.name(name), marked))
    return Grid(f"{caption}, percent", ["system", *heads], rows)


def _panel(frame: Frame, measure: str) -> dict[str, Any]:
    """One measure by slice: a table and its bars."""
    title, systems = frame.measures[measure], list(frame.report["systems"])
    places = [(part, measure) for part in frame.slices]
    grid = _by_system(frame, f"{title} by group of queries", map(frame.head, frame.slices), places)
    values = [[frame.score(name, part, measure) for part in frame.slices] for name in systems]
    spans = [[frame.interval(name, part, measure) for part in frame.slices] for name in systems]
    chart = charts.bars(frame.slices, values, spans, f"{title}, %", f"bars{list(frame.measures).index(measure)}")
    return {"name": title, "chosen": measure == frame.primary, "grid": grid, "chart": Markup(chart)}


def _scatter(frame: Frame) -> Markup | None:
    points = {}
    for i, name in enumerate(frame.report["systems"]):
        ms, score = known(frame.part("cost").get(name, {}).get("ms_per_query")), frame.score(name, "all", frame.primary)
        if ms and score is not None:
            points[i] = (ms, score)
    label = f"{frame.measures.get(frame.primary)}, %"
    return Markup(charts.scatter(points, "ms per query", label, "cost")) if points else None


def _probes(frame: Frame) -> Iterator[dict[str, Any]]:
    """What each probe measured: a table by slice, and a curve where its rows are numbers."""
    if routing := frame.part("routing"):
        more = {
            "thought over, %": [_share(row.get("thinks")) for row in routing.values()],
            "ms per query": [
                Cell(plain(row.get("ms_per_query")), known(row.get("ms_per_query"))) for row in routing.values()
            ],
        }
        text = "Never, always, or where the query asks for it (auto)."
        scores = {name: row.get("scores") or {} for name, row in routing.items()}
        yield _probe(frame, "routing", ("When to think", "mode", text), scores, more)
    for key, words in PROBES.items():
        if scores := frame.part(key):
            yield _probe(frame, key, words, scores, {})


def _probe(
    frame: Frame, key: str, words: tuple[str, str, str], scores: Scores, more: Mapping[str, list[Cell]]
) -> dict[str, Any]:
    title, head, text = words
    found = set(_keys(scores))
    measure = next((m for m in [frame.primary, *frame.measures, *sorted(found)] if m in found), "")
    slices = [part for part in frame.slices if any(part in row for row in scores.values())]
    rows = [
        (charts.short(name, NAME), [*cells, *(_share(_at(scores, name, part, measure)) for part in slices)])
        for name, *cells in zip(scores, *more.values(), strict=True)
    ]
    label = frame.measures.get(measure, measure)
    grid = Grid(f"{label} by {head}, percent", [head, *more, *map(frame.head, slices)], rows)
    chart = None
    if key in ("lengths", "fusion") and len(scores) > 1:
        steps = sorted(scores, key=float)
        lines = [part for part in slices if part in ("all", "hard")] or slices[:1]
        series = {part: [_at(scores, step, part, measure) for step in steps] for part in lines}
        chart = Markup(charts.curves([float(step) for step in steps], series, head, f"{label}, %", key))
    return {"title": title, "text": text, "grid": grid, "chart": chart}


def _keys(scores: Scores) -> list[str]:
    return [key for row in scores.values() for cell in row.values() for key in cell]


def _at(scores: Scores, row: str, part: str, measure: str) -> float | None:
    return known(scores.get(row, {}).get(part, {}).get(measure))
