"""Sentences about a report that claim no more than its intervals and tests support."""

from collections.abc import Mapping
from typing import Any

from lrem.evaluation.formatting import finite, finite_interval, percent, probability
from lrem.evaluation.report_view import ReportView

ALPHA = 0.05


def verdict(comparison: Mapping[str, Any]) -> str:
    """Return what a comparison shows at the 5 % level: "significant", "not significant", "unclear" or "not tested".

    Holm's p-value takes precedence over the plain one. "unclear": p is small, but the interval of the difference
    includes zero.

    >>> verdict({"p": 0.03, "p_holm": 0.09}), verdict({"p": 0.03, "low": -0.01, "high": 0.02})
    ('not significant', 'unclear')
    """
    p, ends = _p_value(comparison), finite_interval((comparison.get("low"), comparison.get("high")))
    includes_zero = ends is not None and ends[0] <= 0 <= ends[1]
    if p is None:
        return "not tested" if ends is None else "not significant" if includes_zero else "significant"
    return "not significant" if p >= ALPHA else "unclear" if includes_zero else "significant"


def scope(view: ReportView) -> str:
    """Say in one sentence what was measured."""
    counts, systems = view.section("counts"), len(view.report["systems"])
    parts = [f"{counts[what]:,} {what}" for what in ("queries", "items", "judgements") if counts.get(what) is not None]
    return f"Measured: {systems} system{'s' * (systems > 1)}{' on ' * bool(parts)}{', '.join(parts)}."


def headline(view: ReportView) -> str:
    """Compare the best system on the primary measure with the second best, in one sentence."""
    scores = {name: finite(view.score(name, "all", view.primary)) for name in view.report["systems"]}
    ranked = sorted(((name, score) for name, score in scores.items() if score is not None), key=lambda pair: -pair[1])
    measure = view.measures.get(view.primary, "any measure")
    if not ranked:
        return f"No system has a score on {measure} over all queries, so none is ahead."
    (best, top), (second, runner_up) = ranked[0], ranked[min(1, len(ranked) - 1)]
    if len(ranked) == 1:
        reached = f"{view.name(best)} reaches {_score_text(view, best, top)} on {measure}"
        return f"{reached}; there is no second system to compare it with."
    if top == runner_up:
        names = f"{view.name(best)} and {view.name(second)}"
        return f"{names} are level at the top: both reach {percent(top)} % on {measure}."
    return (
        f"{view.name(best)} has the highest {measure}, {_score_text(view, best, top)}, ahead of {view.name(second)} at "
        f"{_score_text(view, second, runner_up)}: {_lead(view, best, second, top - runner_up)}."
    )


def _score_text(view: ReportView, system: str, score: float) -> str:
    return f"{percent(score)} %{_interval_text(view.interval(system, 'all', view.primary))}"


def _lead(view: ReportView, best: str, second: str, difference: float) -> str:
    """Say how certain the lead is: by the paired comparison if there is one, else by the two intervals."""
    upper, lower = (view.interval(name, "all", view.primary) for name in (best, second))
    overlap = None if upper is None or lower is None else upper[0] <= lower[1]
    target = ({best, second}, "all", view.primary)
    matches = (c for c in view.section("comparisons") if ({c["a"], c["b"]}, c["slice"], c["measure"]) == target)
    comparison: Mapping[str, Any] = next(matches, {"a": best})
    shown = verdict(comparison)
    if shown == "not tested":
        return _untested_lead(overlap, difference)
    p, ends = _p_value(comparison), finite_interval((comparison.get("low"), comparison.get("high")))
    lead = f"the difference of {percent(difference)} points"
    lead += _interval_text((-ends[1], -ends[0]) if ends and comparison["a"] != best else ends)
    holm = " after Holm's correction" if finite(comparison.get("p_holm")) is not None else ""
    proof = "" if p is None else f" (p {'= ' if p >= 0.001 else ''}{probability(p)}{holm})"
    if shown == "significant":
        return f"{lead} is significant{proof}{', although their own intervals overlap' if overlap else ''}"
    if shown == "unclear":
        return f"{lead} is unclear: its interval includes zero, which the test{proof} rejects"
    return f"{lead} is not significant{proof}, so the two cannot be told apart here"


def _untested_lead(overlap: bool | None, difference: float) -> str:
    if overlap is None:
        return f"without a test and intervals, the lead of {percent(difference)} points may be chance"
    if overlap:
        return "their intervals overlap and no paired test is given, so it is unclear which is better"
    return "their intervals do not overlap; no paired test is given"


def _p_value(comparison: Mapping[str, Any]) -> float | None:
    holm = finite(comparison.get("p_holm"))
    return finite(comparison.get("p")) if holm is None else holm


def _interval_text(ends: tuple[float, float] | None) -> str:
    return f" (95 % interval {percent(ends[0])} to {percent(ends[1])})" if ends else ""
