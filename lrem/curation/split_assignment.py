"""The outcomes of a query in curation, and the split that each outcome allows."""

from typing import Any

from lrem.config import CurateConfig
from lrem.curation.splits import split_for_draw

# The values of `outcome`: kept, with what its rows lack
KEPT = "kept"
KEPT_WITHOUT_REASONING = "kept without reasoning"  # an easy query, whose empty reasoning teaches when not to reason
KEPT_UNHELPED = "kept, the words do not help"  # hard, but embedded without the words: curate.only_helpful
KEPT_WITHOUT_TEACHER = "kept without a teacher"  # judged but without a reasoning, so for RL alone
# or dropped, and why
TEACHER_FAILED = "the teacher failed"
JUDGE_FAILED = "the judge failed"
NOTHING_RELEVANT = "nothing relevant"
EMPTY_DIFFERENCE = "empty difference set"
NO_REASONING = "no reasoning"  # an easy query, with curate.keep_easy off
NO_TEACHER = "no teacher"
NO_KEYWORDS_LEFT = "nothing left by the rules"


def assign_split(settings: CurateConfig, row: dict[str, Any]) -> str | None:
    """Return the split of a judged query (cold_start, rl, dev or test), or None if it has to be left out.

    Args:
        settings: with `test_share` set.
        row: with the columns draw, alone and outcome of `curation_run.VERDICT_SCHEMA`.
    """
    assert settings.test_share is not None
    split = split_for_draw(row["draw"], settings.rl_share, settings.dev_share, settings.test_share)
    if row["outcome"] in (KEPT_WITHOUT_REASONING, KEPT_UNHELPED) and split == "rl" and not settings.rl_easy:
        return "cold_start" if row["alone"] else None
    if row["outcome"] != KEPT_WITHOUT_TEACHER or split in ("rl", "test"):
        return split
    # Without a reasoning a query can only serve RL, but must not be separated from its near-duplicates.
    return "rl" if split == "cold_start" and row["alone"] else None
