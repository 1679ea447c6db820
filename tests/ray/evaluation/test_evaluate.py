"""Overrides, table and plot; scores put together by hand; an evaluation of systems that are none of ours."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from lrem.config import Config, EvaluateConfig, load_config
from lrem.data.files import write_parquet
from lrem.evaluation.overrides import OVERRIDES, override
from lrem.evaluation.report import CATEGORIES, plot, score_table
from lrem.evaluation.run_scorer import MIN_QUERIES, RunScorer
from lrem.evaluation.trec import read_run, write_qrels, write_run
from ray_apps.evaluation import evaluate
from tests.chat_server import Chat, serve
from tests.tiny_encoder import TITLES, save_meanings


def test_overrides() -> None:
    queries, own, words = ["red coat", "tea"], ["wool, warm coat", ""], ["oak", "iron"]
    assert override("own", queries, own, words, 0) == own
    assert override("empty", queries, own, words, 0) == ["", ""]
    assert override("query", queries, own, words, 0) == queries
    drawn = override("random", queries, own, words, 3)
    assert [len(text.split()) for text in drawn] == [3, 1]
    assert set(" ".join(drawn).split()) <= set(words)
    assert drawn == override("random", queries, own, words, 3)
    with pytest.raises(ValueError, match="own, empty, random, query"):
        override("gold", queries, own, words, 0)


def test_table_and_plot(tmp_path: Path) -> None:
    row = {category: {"hit_rate": 0.254, "precision": 0.5} for category in CATEGORIES}
    report = {
        "seed": 3,
        "k": {"hit_rate": 30, "precision": 10},
        "systems": {"bm25": row, "lrem": row},
        "overrides": {name: {"all": row["all"]} for name in OVERRIDES},
    }
    console = Console(width=160, record=True)
    console.print(score_table("systems", report["systems"], report["k"]))
    text = console.export_text()
    assert "HitRate@30 / Precision@10" in text
    assert "25.4/50.0" in text
    assert plot(report, tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_two_runs_put_together_by_hand() -> None:
    """Five easy queries and four negative ones, of which one item each is relevant."""
    queries = {
        f"q{i}": {"query": f"query {i}", "category": "easy" if i < MIN_QUERIES else "negative"} for i in range(9)
    }
    qrels = {q: {f"i{q}": 1} for q in queries}
    runs = {
        "with": {q: [(f"i{q}", 2.0), ("x", 1.0)] for q in queries},
        "less": {q: [("x", 2.0), (f"i{q}", 1.0)] for q in queries},  # half of it
        "near": {q: [("x", 2.0)] if q == "q8" else [(f"i{q}", 2.0)] for q in queries},  # fails once
    }
    scorer = RunScorer(queries, qrels, EvaluateConfig(primary="RR@10", gallery=3), seed=0)
    scores = {name: scorer.score(name, run) for name, run in runs.items()}
    assert [scores[name]["all"]["RR@10"] for name in runs] == pytest.approx([1, 0.5, 8 / 9])
    assert scores["near"]["negative"]["RR@10"] == scores["near"]["hard"]["RR@10"] == 0.75
    assert scorer.intervals("less") == {"all": {"RR@10": [0.5, 0.5]}, "easy": {"RR@10": [0.5, 0.5]}}  # four: too few
    found = {(row["b"], row["slice"]): row for row in scorer.compare([("with", "less"), ("with", "near")])}
    assert set(found) == {(name, part) for name in ("less", "near") for part in ("all", "easy")}
    told = {key: (row["difference"], row["p"], row["p_holm"]) for key, row in found.items()}
    # two of all signs of nine or five equal differences are as extreme; Holm doubles the smaller of a slice's two
    assert told["less", "all"] == pytest.approx((0.5, 2 / 2**9, 4 / 2**9))
    assert told["less", "easy"] == pytest.approx((0.5, 2 / 2**5, 4 / 2**5))
    assert told["near", "all"] == pytest.approx((1 / 9, 1, 1))
    assert told["near", "easy"] == pytest.approx((0, 1, 1))
    assert scorer.unjudged(runs["with"]) == {"10": 0.5}


def test_the_gallery_shows_gains_losses_and_firsts() -> None:
    gains = {"q1": 0.0, "q2": 1.0, "q3": -1.0, "q4": 0.5, "q5": -0.5, "q6": 1.0}
    queries = {q: {"query": q, "category": "easy" if q < "q5" else None} for q in gains}
    hit, second, miss = [("i", 2.0)], [("x", 2.0), ("i", 1.0)], [("x", 1.0)]
    runs = {1.0: (miss, hit), -1.0: (hit, miss), 0.5: (second, hit), -0.5: (hit, second), 0.0: (hit, hit)}
    without, with_it = ({q: runs[gain][side] for q, gain in gains.items()} for side in (0, 1))
    thoughts = dict.fromkeys(gains, "a thought") | {"q6": ""}  # without a thought there is nothing to show
    sizes = {3: ["q2", "q3", "q1"], 6: ["q2", "q4", "q3", "q5", "q1"], 0: []}
    for size, shown in sizes.items():
        config = EvaluateConfig(primary="RR@10", gallery=size)
        scorer = RunScorer(queries, {q: {"i": 3} for q in queries}, config, seed=0)
        for name, run in (("never", without), ("always", with_it)):
            scorer.score(name, run)
        modes = {"never": without, "always": with_it}
        rows = scorer.gallery("never", "always", modes, thoughts, {"i": "a coat"})
        assert [row["query_id"] for row in rows] == shown
        assert all(row["gain"] == gains[row["query_id"]] for row in rows)


@pytest.fixture
def shop(tmp_path: Path) -> Config:
    """Four judged queries, one of which was trained on; judgements and another system's run in TREC's formats."""
    queries = {"q1": "bicycle", "q2": "canned soup", "q3": "mittens", "q4": "vest"}
    write_parquet(pa.table({"item_id": list(TITLES), "title": list(TITLES.values())}), tmp_path / "world/items.parquet")
    write_parquet(
        pa.table({"query_id": list(queries), "query": list(queries.values())}), tmp_path / "world/queries.parquet"
    )
    trained = {"query_id": ["q4"], "query": ["vest"], "reasoning": [""], "item_id": ["i5"], "title": ["vest"]}
    write_parquet(pa.table(trained), tmp_path / "curated/triplets.parquet")
    judged = {"q1": {"i3": 1, "i4": 2, "i5": 0}, "q2": {"i6": 2}, "q3": {"i2": 1}, "q4": {"i5": 1}}
    write_qrels(judged, tmp_path / "judged.qrels")
    write_run({"q1": [("i4", 0.9), ("i1", 0.5)], "q2": [("gone", 0.8)]}, tmp_path / "elastic.run", "elastic")
    return load_config(
        None,
        [
            *(f"run_dir={tmp_path / 'run'}", "ray.num_cpus=4", f"paths.items={tmp_path / 'world/items.parquet'}"),
            *(f"paths.queries={tmp_path / 'world/queries.parquet'}", f"paths.qrels={tmp_path / 'judged.qrels'}"),
            *(
                f"paths.triplets={tmp_path / 'curated/triplets.parquet'}",
                "evaluate.precision_k=2",
                "evaluate.judge_k=2",
            ),
            f"evaluate.sentence_transformers=[{save_meanings(tmp_path / 'meanings')}]",
            f"evaluate.runs={{elastic: {tmp_path / 'elastic.run'}}}",
        ],
    )


def asked_at(config: Config, url: str) -> Config:
    llm = config.evaluate.llm.model_copy(update={"engine": "url", "model": "wise", "url": url, "retries": 0})
    judge = config.evaluate.judge_llm.model_copy(update={"engine": "url", "model": "fair", "url": url, "retries": 0})
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"llm": llm, "judge_llm": judge})})


def test_systems_that_are_none_of_ours(shop: Config) -> None:
    keywords = {"bicycle": "bike poster", "canned soup": "Keywords: tin soup", "mittens": "leather gloves"}
    grades = {("bicycle", "bicycle bell"): "3", ("bicycle", "bike poster"): "1", ("canned soup", "tin soup"): "3"}
    chat = Chat(keywords, grades | {("mittens", "leather gloves"): "who knows"})
    with serve(chat) as url:
        report = evaluate.run(asked_at(shop, url))
    precision = {name: row["all"]["precision"] for name, row in report["systems"].items()}
    assert precision == pytest.approx(
        {
            **{"elastic": 1 / 6},  # i4 of two
            **{"bm25": 1 / 3, "bm25_stems": 1 / 3},  # i4 and i6 of six
            **{"prompt": 2 / 3, "meanings": 2 / 3},  # i3 and i4, i6, i2 of six
        }
    )
    assert report["slices"] == {"all": 3, "uncategorised": 3, "difficulty=hard": 2, "difficulty=easy": 1}
    assert report["counts"] == {"queries": 3, "items": 6, "judgements": 5, "left out, trained on": 1}
    judge = report["judge"]
    assert judge["precision"] == pytest.approx(
        {"elastic": 1 / 6, "bm25": 1 / 3, "bm25_stems": 1 / 3, "prompt": 1 / 3, "meanings": 1 / 3}, abs=1e-4
    )
    agreed = {"pairs": 3, "accepted": 2, "relevant": 3, "precision": 1.0, "recall": 0.6667}  # i4 i6, but not i3
    assert judge["agreement"].items() >= agreed.items()
    assert judge["agreement"]["without a readable answer"] == 1
    assert {call[0] for call in chat.calls} == {"rewrite", "judge"}
    assert set(chat.calls.values()) == {1}
    assert report["inputs"]["qrels"].startswith(f"{shop.path('qrels')} (")
    assert "ms_per_query" not in report["cost"]["prompt"]
    folder = shop.run_dir / "evaluation"
    assert read_run(folder / "meanings.run")["q3"][0][0] == "i2"
    assert read_run(folder / "elastic.run") == read_run(shop.evaluate.runs["elastic"])
    assert json.loads((shop.run_dir / "evaluation.json").read_text())["systems"] == report["systems"]
    page = (shop.run_dir / "evaluation.html").read_text()
    assert "difficulty=hard (2)" in page
    assert "so the comparison is unfair to it" in page
