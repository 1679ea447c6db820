"""The outcomes of a query in curation, and the split that each outcome allows."""

from typing import Any

from lrem.config import CurateConfig
from lrem.curation.splits import split_for_draw

KEPT, EASY, UNTAUGHT = "kept", "kept without reasoning", "kept without a teacher"
FAILED, UNDECIDED = "the teacher failed", "the judge failed"
IRRELEVANT, EMPTY = "nothing relevant", "empty difference set"


def assign_split(settings: CurateConfig, row: dict[str, Any]) -> str | None:
    """Return the split of a judged query (cold_start, rl, dev or test), or None if it has to be left out.

    Args:
        settings: with `test_share` set.
        row: with the columns draw, alone and outcome of `curation_run.JUDGED_SCHEMA`.
    """
    assert settings.test_share is not None
    split = split_for_draw(row["draw"], settings.rl_share, settings.dev_share, settings.test_share)
    if row["outcome"] == EASY and split == "rl" and not settings.rl_easy:
        return "cold_start" if row["alone"] else None
    if row["outcome"] != UNTAUGHT or split in ("rl", "test"):
        return split
    # Without a reasoning a query can only serve RL, but must not be separated from its near-duplicates.
    return "rl" if split == "cold_start" and row["alone"] else None
