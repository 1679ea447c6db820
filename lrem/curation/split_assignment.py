"""What becomes of a query in curation, and which part of the split it goes to."""

from typing import Any

from lrem.config import CurateConfig
from lrem.curation.splits import part_of

KEPT, EASY, UNTAUGHT = "kept", "kept without reasoning", "kept without a teacher"
FAILED, UNDECIDED = "the teacher failed", "the judge failed"
IRRELEVANT, EMPTY = "nothing relevant", "empty difference set"


def place(settings: CurateConfig, row: dict[str, Any]) -> str | None:
    """The part of the split that a decided query belongs to; None where it must be left out.

    Args:
        settings: with a test_share. row: has draw, alone and outcome (curators.DECIDED).
    """
    assert settings.test_share is not None
    name = part_of(row["draw"], settings.rl_share, settings.dev_share, settings.test_share)
    if row["outcome"] == EASY and name == "rl" and not settings.rl_easy:
        return "cold_start" if row["alone"] else None
    if row["outcome"] != UNTAUGHT or name in ("rl", "test"):
        return name
    # without a reasoning it can only go to reinforcement, but not away from its near-duplicates
    return "rl" if name == "cold_start" and row["alone"] else None
