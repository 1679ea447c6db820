"""The small parts of curation: words, difficulty, what is known, judging, the datasheet, and what questions cost."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.config import LlmConfig
from lrem.curation import datasheet
from lrem.curation.cost_estimate import LlmWorkload, estimate_cost
from lrem.curation.difficulty import QueryDifficulty, histogram, is_hard, measure_difficulty
from lrem.curation.judging import judge_agreement, judged_precision, parse_verdict
from lrem.curation.prompts import judge_messages
from lrem.curation.query_lookup import IDS_PER_STATEMENT, QueryLookup, write_lookup
from lrem.curation.teacher import token_counter
from lrem.data.words import NEGATIONS, STOP_WORDS, content_words, literals, stem, words
from lrem.modeling.tokenizer import train_tokenizer

# words


def test_words_of_other_scripts_and_signs() -> None:
    assert words("Größe 42½, l'été—C++ 跑步鞋") == ["größe", "42½", "l", "été", "c", "跑步", "步鞋"]
    assert words(" \n!?") == []


def test_literals_have_a_digit() -> None:
    assert literals("AA batteries, 3-pack WH-1000XM4 (64GB)") == {"3-pack", "wh-1000xm4", "64gb"}
    assert literals("no number") == set()
    assert literals("iphone15手机壳 14寸 ノートPC13") == {"iphone15", "14", "pc13"}


@pytest.mark.parametrize(
    ("word", "stemmed"),
    [
        *(("coats", "coat"), ("boxes", "box"), ("watches", "watch"), ("brushes", "brush"), ("glasses", "glass")),
        *(("berries", "berry"), ("ties", "tie"), ("houses", "house"), ("gas", "gas"), ("dress", "dress")),
        *(("cactus", "cactus"), ("tennis", "tennis"), ("men", "men"), ("s", "s"), ("", "")),
    ],
)
def test_stem(word: str, stemmed: str) -> None:
    assert stem(word) == stemmed


@given(st.text(max_size=30))
def test_content_words_say_something(text: str) -> None:
    assert not set(words(text)) & STOP_WORDS & set(content_words(text))
    assert len(content_words(text)) == sum(word not in STOP_WORDS for word in words(text))
    assert content_words(text) == content_words(f"  {text}!")


def test_negations_are_no_silent_words() -> None:
    assert not NEGATIONS & STOP_WORDS


# difficulty


def test_difficulty_by_hand() -> None:
    ranking = [("a", 4.0), ("b", 3.0), ("c", 1.0)]
    found = measure_difficulty("a warm coat for men", ranking, {"b", "x", "y"}, ["Coats of wool", "men's hat"], 3)
    assert found == QueryDifficulty(recall=1 / 3, margin=0.75, overlap=2 / 3)  # coat and men of warm, coat, men
    assert measure_difficulty("the", [], set(), [], 3) == QueryDifficulty(None, 0.0, 0.0)
    assert measure_difficulty("coat", [("a", -0.5), ("b", -1.0)], set(), ["coat"], 2) == QueryDifficulty(None, 1.0, 1.0)
    assert measure_difficulty("coat", [("a", 2.0)], {"a"}, [], 1) == QueryDifficulty(1.0, 0.0, 0.0)
    many = {f"i{n}" for n in range(60)}
    assert (
        measure_difficulty("coat", [(f"i{n}", 9.0 - n / 30) for n in range(30)], many, [], 30).recall == 1.0
    )  # all it can hold
    assert measure_difficulty("coat", [(f"i{n}", 9.0 - n / 30) for n in range(45, 75)], many, [], 30).recall == 0.5
    assert measure_difficulty("coat", [("a", 2.0)], {"a"}, [], 30).margin == 1.0  # no other item has anything of it


def test_a_query_is_hard_below_any_threshold() -> None:
    found = QueryDifficulty(0.7, 0.2, 0.5)
    assert not is_hard(found, 0.7, 0.2, 0.5)  # below, not at
    assert is_hard(found, 0.71, None, None)
    assert is_hard(found, None, 0.21, None)
    assert is_hard(found, None, None, 0.51)
    assert is_hard(found, 0.1, 0.1, 0.51)
    assert is_hard(found, None, None, None)  # nothing is set: all are
    assert is_hard(found._replace(recall=None), 0.1, None, None)  # nothing can be told: it may be
    assert not is_hard(found._replace(recall=None), 1.0, 0.1, None)  # the margin can


@given(st.lists(st.one_of(st.none(), st.floats(0, 1)), max_size=50))
def test_the_histogram_counts_as_numpy_does(values: list[float | None]) -> None:
    known = [value for value in values if value is not None]
    # numpy's own edges are rounded; ours are where value × 10 passes a whole number
    counts = np.histogram([value * 10 for value in known], bins=10, range=(0, 10))[0].tolist()
    assert histogram(values) == [*counts, len(values) - len(known)]
    assert histogram([7.5]) == histogram([1.0])  # a margin may be more than the best score


# what is known


def test_a_lookup_gives_the_rows_in_their_order(tmp_path: Path) -> None:
    rows = [("q1", "b", 2), ("q2", "a", 0), ("q1", "a", None), ("q'\"ü", "x", 1.5)]
    known = QueryLookup(write_lookup(iter(rows), tmp_path / "known.sqlite"))
    assert known.get(["q1", "q3", "q'\"ü"]) == {"q1": [("b", 2), ("a", None)], "q'\"ü": [("x", 1.5)]}
    assert known.get([]) == {}
    assert [file.name for file in tmp_path.iterdir()] == ["known.sqlite"]  # no journal, no part


def test_a_lookup_of_many_ids(tmp_path: Path) -> None:
    many = [f"q{i}" for i in range(2 * IDS_PER_STATEMENT + 1)]
    known = QueryLookup(write_lookup(((one, one, i) for i, one in enumerate(many)), tmp_path / "known.sqlite"))
    assert known.get([*many, "other"]) == {one: [(one, i)] for i, one in enumerate(many)}


def test_a_lookup_lies_under_any_name(tmp_path: Path) -> None:
    odd = tmp_path / "50% off? #1 %41"
    odd.mkdir()
    known = QueryLookup(write_lookup([("q", "a", 1)], odd / "known.sqlite"))
    assert known.get(["q"]) == {"q": [("a", 1)]}


def test_a_lookup_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_lookup(((str(i), 1 // (3 - i), 0) for i in range(9)), tmp_path / "known.sqlite")
    assert list(tmp_path.iterdir()) == []


# tokens


def test_tokens_are_counted_as_a_sequence_holds_them(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([" warm coat, warm hat"] * 9, 300)
    tokenizer.save_pretrained(tmp_path)
    count = token_counter(str(tmp_path))
    assert count("warm coat") == len(tokenizer.encode(" warm coat", add_special_tokens=False))
    assert count("warm coat") < len(tokenizer.encode("warm coat", add_special_tokens=False))
    assert token_counter(None)("warm coat, hat") == 4  # words and commas


# judging


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa of a 2 × 2 table of counts, by its definition."""
    shares = table / table.sum()
    chance = float(shares.sum(0) @ shares.sum(1))
    return (float(np.trace(shares)) - chance) / (1 - chance)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_agreement_by_its_definitions(pairs: list[tuple[bool, bool]]) -> None:
    judged, known = zip(*pairs, strict=True)
    table = np.array([[pairs.count((a, b)) for b in (True, False)] for a in (True, False)])
    told = judge_agreement(judged, known)
    assert (told["pairs"], told["accepted"], told["relevant"]) == (len(pairs), table[0].sum(), table[:, 0].sum())
    assert told["accuracy"] == round(np.trace(table) / len(pairs), 4)
    assert told.get("precision") == (round(table[0, 0] / table[0].sum(), 4) if table[0].sum() else None)
    assert told.get("recall") == (round(table[0, 0] / table[:, 0].sum(), 4) if table[:, 0].sum() else None)
    if len(set(judged)) == len(set(known)) == 1 and judged[0] == known[0]:
        assert "kappa" not in told  # both always say the same: chance agrees too
    else:
        assert told["kappa"] == pytest.approx(kappa(table), abs=6e-5)


def test_nothing_judged_says_nothing() -> None:
    assert judge_agreement([], []) == {"pairs": 0, "accepted": 0, "relevant": 0}
    assert judged_precision([], 10) == 0
    assert judged_precision([[True] * 10, []], 10) == 0.5
    assert [parse_verdict(text, min_grade=1) for text in ("Grade: 1", "0", "", None)] == [True, False, None, None]


# datasheet


def a_sheet(judge: str = "llm") -> dict:
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
    steps = {
        "found": {"queries": 15, "hard": 5, "recall": bins, "margin": bins, "overlap": bins},
        "taught": {"phrases": 20, "dropped: repeated": 4, "dropped: banned": 2, "failed": 0},
        "judged": {"agreement": [4, 1, 2, 3], "judged": 12, "unjudged": 1},
    }
    example = {"query": "tea | pot", "reasoning": "kettle", "item": "Red kettle"}
    counters = datasheet.CurationCounters(
        **steps,
        near_duplicates={"near-duplicates": 2, "largest group": 3},
        outcomes={"kept": 9, "nothing relevant": 6},
        queries={"cold_start": 5, "rl": 3, "test": 1},
        rows={"cold_start": 11, "rl": 4, "test": 1},
    )
    return datasheet.build_datasheet(settings, counters, [example])


def test_a_datasheet_holds_the_counts() -> None:
    sheet = a_sheet()
    assert sheet["difficulty"]["thresholds"] == {"recall_below": 0.7}
    assert sheet["judge"] == {
        "kind": "llm",
        "model": "fair",
        "accept": 0.5,
        "pairs": 12,
        "without a readable answer": 1,
        "agreement with known grades": {
            **{"pairs": 10, "accepted": 5, "relevant": 6},
            # 7 of 10 the same; by chance 0.5 × 0.6 + 0.5 × 0.4 = 0.5
            **{"accuracy": 0.7, "precision": 0.8, "recall": 0.6667, "kappa": 0.4},
        },
    }
    assert sheet["split"] == {
        "cold start": {"queries": 5, "rows": 11},
        "reinforcement": {"queries": 3, "rows": 4},
        "test": {"queries": 1, "rows": 1},
    }
    assert a_sheet("cross_encoder")["judge"]["model"] == "ce"
    assert a_sheet("known")["judge"] == {"kind": "known"}
    assert json.loads(json.dumps(sheet)) == sheet


def test_a_datasheet_as_a_page() -> None:
    page = datasheet.render_markdown(a_sheet())
    for line in (
        "5 of 15 queries are hard.",
        "Hard is: recall below 0.7.",
        "| recall | ` ▁      ▄█` | 0 1 0 0 0 0 0 0 4 8 | 2 |",
        "- dropped: repeated: 4",
        "- model: wise",
        "| kept | 9 |",
        "| cold start | 5 | 11 |",
        "| tea / pot | kettle | Red kettle |",
    ):
        assert line in page.splitlines()
    assert page.index("| kept |") < page.index("| nothing relevant |")
    assert "2 queries are near-duplicates of another and went where it went; the largest group has 3." in page


def test_what_was_left_out_for_another_split_is_told() -> None:
    near = {"near-duplicates": 2, "largest group": 3}
    told = datasheet.render_markdown(a_sheet() | {"near-duplicates": near | {datasheet.NEAR_OTHERS: 7}})
    assert "the largest group has 3. 7 more were left out: near a query of another split.\n" in told
    assert "another split" not in datasheet.render_markdown(
        a_sheet() | {"near-duplicates": near | {datasheet.NEAR_OTHERS: 0}}
    )


def test_bars_show_the_least_count() -> None:
    assert datasheet.sparkline([0, 1, 1000, 500]) == " ▁█▄"
    assert datasheet.sparkline([]) == ""
    assert datasheet.sparkline([0, 0]) == "  "


# what it costs


def test_the_cost_by_hand() -> None:
    llm = LlmConfig(max_tokens=50, price_in=2.0, price_out=10.0, tokens_a_second=100.0)
    short, long = ([{"role": "user", "content": "x" * n}] for n in (40, 400))
    found = estimate_cost([LlmWorkload(300, short), LlmWorkload(7, long)], llm)
    # 12,000 + 2,800 characters, four a token; 307 answers of 50 tokens
    assert (found.requests, found.tokens_in, found.tokens_out) == (307, 3700, 15350)
    assert found.money == pytest.approx(3700 * 2e-6 + 15350 * 10e-6)
    assert found.seconds == pytest.approx(153.5)
    assert estimate_cost([], llm) == (0, 0, 0, 0.0, 0.0)
    system = [{"role": "system", "content": "y" * 8}, *short]
    assert estimate_cost([LlmWorkload(1, system)], llm).tokens_in == 12  # of all messages
    assert (
        estimate_cost([LlmWorkload(1, judge_messages("tea", "pot"))], llm).tokens_in
        == len(judge_messages("tea", "pot")[0]["content"]) // 4
    )
