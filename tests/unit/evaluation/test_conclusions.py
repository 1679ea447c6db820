"""The sentences of a report: each claims no more than its intervals and tests support."""

from typing import Any

from lrem.evaluation.conclusions import headline
from lrem.evaluation.report_view import view_of
from tests.report_pages import comparison, full_report


def headline_with(**changed: Any) -> str:
    """Return the headline of a full report with some sections replaced."""
    return headline(view_of(full_report() | changed))


def test_a_significant_lead() -> None:
    assert headline_with() == (
        "LREM + RL has the highest nDCG@10, 61.2 % (95 % interval 58.7 to 63.7), ahead of direct at 55.0 % "
        "(95 % interval 52.5 to 57.5): the difference of 6.2 points (95 % interval 4.1 to 8.3) is significant "
        "(p < 0.001 after Holm's correction)."
    )


def test_a_comparison_in_the_other_direction_is_reversed() -> None:
    text = headline_with(comparisons=[comparison("direct", "lrem", -0.0622, -0.083, -0.041, 0.01, 0.02)])
    assert "the difference of 6.2 points (95 % interval 4.1 to 8.3) is significant (p = 0.020 after" in text


def test_a_lead_that_is_not_significant() -> None:
    text = headline_with(comparisons=[comparison("lrem", "direct", 0.0622, -0.01, 0.14, 0.04, 0.12)])
    assert text.endswith(
        "the difference of 6.2 points (95 % interval −1.0 to 14.0) is not significant (p = 0.120 after Holm's "
        "correction), so the two cannot be told apart here."
    )


def test_a_lead_without_a_paired_test() -> None:
    overlapping = full_report()["intervals"]
    overlapping["direct"]["all"]["nDCG@10"] = [0.5, 0.6]
    text = headline_with(comparisons=[], intervals=overlapping)
    assert text.endswith("their intervals overlap and no paired test is given, so it is unclear which is better.")
    assert headline_with(comparisons=[]).endswith("their intervals do not overlap; no paired test is given.")
    assert headline_with(comparisons=[], intervals={}) == (
        "LREM + RL has the highest nDCG@10, 61.2 %, ahead of direct at 55.0 %: without a test and intervals, the lead "
        "of 6.2 points may be chance."
    )


def test_mixed_evidence() -> None:
    overlapping = full_report()["intervals"]
    overlapping["direct"]["all"]["nDCG@10"] = [0.5, 0.6]
    assert headline_with(intervals=overlapping).endswith("correction), although their own intervals overlap.")
    text = headline_with(comparisons=[comparison("lrem", "direct", 0.0622, -0.001, 0.12, 0.01, 0.03)])
    assert "is unclear: its interval includes zero, which the test (p = 0.030 after Holm's correction) rejects" in text
    unknown = comparison("lrem", "direct", 0.0622, 0.041, 0.083, float("nan"), float("nan"))
    assert headline_with(comparisons=[unknown]).endswith("(95 % interval 4.1 to 8.3) is significant.")


def test_one_system_a_tie_and_no_score() -> None:
    systems = full_report()["systems"]
    assert headline_with(systems={"lrem": systems["lrem"]}) == (
        "LREM + RL reaches 61.2 % (95 % interval 58.7 to 63.7) on nDCG@10; there is no second system to compare it "
        "with."
    )
    assert headline_with(systems={"direct": systems["lrem"], "lrem": systems["lrem"]}) == (
        "direct and LREM + RL are level at the top: both reach 61.2 % on nDCG@10."
    )
    nothing = {"lrem": {"all": {"nDCG@10": float("nan")}}}
    assert headline_with(systems=nothing) == "No system has a score on nDCG@10 over all queries, so none is ahead."
