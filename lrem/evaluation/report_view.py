"""A report with the order and the labels of its slices and measures, and lookups that tolerate missing parts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lrem.errors import DataError
from lrem.evaluation.charts import short
from lrem.evaluation.formatting import finite, finite_interval

MAX_NAME = 80  # characters of a name that are shown

SliceScores = Mapping[str, Mapping[str, Mapping[str, float]]]  # system or variant → slice → measure → share


@dataclass(frozen=True)
class ReportView:
    """A report as `lrem.evaluation.page.write_page` takes it, with its slices and measures in the order to show."""

    report: Mapping[str, Any]
    slices: list[str]  # "all" first
    measures: dict[str, str]  # measures that at least one system has → label
    primary: str

    def section(self, key: str) -> Any:
        """Return a part of the report, or an empty mapping if it is absent."""
        return self.report.get(key) or {}

    def name(self, system: str) -> str:
        """Return the name to show for a system."""
        return short(str(self.section("names").get(system, system)), MAX_NAME)

    def score(self, system: str, slice_name: str, measure: str) -> float | None:
        """Return a system's score as a share."""
        return score_at(self.report["systems"], system, slice_name, measure)

    def interval(self, system: str, slice_name: str, measure: str) -> tuple[float, float] | None:
        """Return the 95 % interval of a score."""
        return finite_interval(self.section("intervals").get(system, {}).get(slice_name, {}).get(measure))

    def slice_heading(self, slice_name: str) -> str:
        """Return a slice's name with its number of queries."""
        count = self.section("slices").get(slice_name)
        return short(slice_name, MAX_NAME) + ("" if count is None else f" ({count:,})")


def view_of(report: Mapping[str, Any]) -> ReportView:
    """Derive the order and the labels from the report, or from the systems' scores where the report has none.

    Raises:
        DataError: the report has no systems.
    """
    systems = report.get("systems") or {}
    if not systems:
        raise DataError("the report has no systems, so there is nothing to show: evaluate at least one")
    slices = list(dict.fromkeys([*(report.get("slices") or {}), *(name for row in systems.values() for name in row)]))
    slices.sort(key=lambda name: name != "all")
    present = list(dict.fromkeys(measure_keys(systems)))
    labels, k = report.get("measures") or {}, report.get("k") or {}
    names = {"hit_rate": "HitRate", "precision": "Precision"}
    defaults = {key: f"{name}@{k[key]}" for key, name in names.items() if key in k}
    order = [*(key for key in labels if key in present), *(key for key in present if key not in labels)]
    measures = {key: short(str(labels.get(key, defaults.get(key, key))), MAX_NAME) for key in order}
    primary = str(report.get("primary"))
    return ReportView(report, slices, measures, primary if primary in measures else next(iter(measures), ""))


def measure_keys(scores: SliceScores) -> list[str]:
    """Return the measure of every score, with repetitions."""
    return [key for row in scores.values() for cell in row.values() for key in cell]


def score_at(scores: SliceScores, row: str, slice_name: str, measure: str) -> float | None:
    """Return one score, or None if it is absent or not finite."""
    return finite(scores.get(row, {}).get(slice_name, {}).get(measure))
