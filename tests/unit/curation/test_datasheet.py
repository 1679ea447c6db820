"""The datasheet's figures and its page."""

import json

from lrem.curation import datasheet


def example_sheet(judge: str = "llm") -> dict:
    settings = {
        "seed": 3,
        "curate": {
            "retriever": "bm25",
            "top_k": 30,
            "difficulty": {"recall_below": 0.7, "margin_below": None, "overlap_below": None},
            "teacher": "llm",
            "llm": {"model": "wise"},
            "judge": judge,
            "judge_llm": {"model": "fair"},
            "cross_encoder": "ce",
            "accept": 0.5,
        },
    }
    bins = [0, 1, 0, 0, 0, 0, 0, 0, 4, 8, 2]
    counters = datasheet.CurationCounters(
        finder={"queries": 15, "hard": 5, "recall": bins, "margin": bins, "overlap": bins},
        teacher={"phrases": 20, "dropped: repeated": 4, "dropped: banned": 2, "failed": 0, "compared": 4, "helpful": 3},
        judge={"agreement": [4, 1, 2, 3], "judged": 12, "unjudged": 1},
        near_duplicates={"near-duplicates": 2, "largest group": 3},
        outcomes={"kept": 9, "nothing relevant": 6},
        queries={"cold_start": 5, "rl": 3, "test": 1},
        rows={"cold_start": 11, "rl": 4, "test": 1},
    )
    example = {"query": "tea | pot", "reasoning": "kettle", "item": "Red kettle"}
    return datasheet.build_datasheet(settings, counters, [example])


def test_the_sheet_contains_the_counts() -> None:
    sheet = example_sheet()
    assert sheet["difficulty"]["thresholds"] == {"recall_below": 0.7}
    assert sheet["judge"] == {
        "kind": "llm",
        "model": "fair",
        "accept": 0.5,
        "pairs": 12,
        "without a readable answer": 1,
        "agreement with known grades": {
            **{"pairs": 10, "accepted": 5, "relevant": 6},
            # 7 of 10 agree; by chance 0.5 × 0.6 + 0.5 × 0.4 = 0.5
            **{"accuracy": 0.7, "precision": 0.8, "recall": 0.6667, "kappa": 0.4},
        },
    }
    assert sheet["split"] == {
        "cold start": {"queries": 5, "rows": 11},
        "reinforcement": {"queries": 3, "rows": 4},
        "test": {"queries": 1, "rows": 1},
    }
    assert example_sheet("cross_encoder")["judge"]["model"] == "ce"
    assert example_sheet("known")["judge"] == {"kind": "known"}
    assert json.loads(json.dumps(sheet)) == sheet


def test_the_page_contains_the_counts() -> None:
    page = datasheet.render_markdown(example_sheet())
    for line in (
        "5 of 15 queries are hard.",
        "Hard is: recall below 0.7.",
        "| recall | ` ▁      ▄█` | 0 1 0 0 0 0 0 0 4 8 | 2 |",
        "- dropped: repeated: 4",
        "- model: wise",
        "With 3 of 4 reasonings the retriever ranks the known relevant items higher than for the query alone.",
        "| kept | 9 |",
        "| cold start | 5 | 11 |",
        "| tea / pot | kettle | Red kettle |",
    ):
        assert line in page.splitlines()
    assert page.index("| kept |") < page.index("| nothing relevant |")
    assert "2 queries are near-duplicates of another and went where it went; the largest group has 3." in page


def test_queries_near_another_split_are_counted() -> None:
    counts = {"near-duplicates": 2, "largest group": 3}
    some = example_sheet() | {"near-duplicates": counts | {datasheet.NEAR_OTHERS: 7}}
    none = example_sheet() | {"near-duplicates": counts | {datasheet.NEAR_OTHERS: 0}}
    sentence = "the largest group has 3. 7 more were left out: near a query of another split.\n"
    assert sentence in datasheet.render_markdown(some)
    assert "another split" not in datasheet.render_markdown(none)


def test_the_smallest_count_is_visible_in_a_sparkline() -> None:
    assert datasheet.sparkline([0, 1, 1000, 500]) == " ▁█▄"
    assert datasheet.sparkline([]) == ""
    assert datasheet.sparkline([0, 0]) == "  "
