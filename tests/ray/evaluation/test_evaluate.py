"""An evaluation without a model of ours: BM25, prompt expansion, sentence-transformers and an external run."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from lrem.evaluation.trec import read_run, write_qrels, write_run
from ray_apps.evaluation import evaluate
from tests.chat_server import Chat, serve
from tests.tiny_encoder import TITLES, save_tiny_encoder


@pytest.fixture
def shop(tmp_path: Path) -> Config:
    """Four judged queries, one of them trained on; judgements and an external run in TREC's formats."""
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
            f"evaluate.sentence_transformers=[{save_tiny_encoder(tmp_path / 'meanings')}]",
            f"evaluate.runs={{elastic: {tmp_path / 'elastic.run'}}}",
        ],
    )


def with_llm_url(config: Config, url: str) -> Config:
    llm = config.evaluate.llm.model_copy(update={"engine": "url", "model": "wise", "url": url, "retries": 0})
    judge = config.evaluate.judge_llm.model_copy(update={"engine": "url", "model": "fair", "url": url, "retries": 0})
    return config.model_copy(update={"evaluate": config.evaluate.model_copy(update={"llm": llm, "judge_llm": judge})})


def test_systems_without_a_model_of_ours(shop: Config) -> None:
    keywords = {"bicycle": "bike poster", "canned soup": "Keywords: tin soup", "mittens": "leather gloves"}
    grades = {("bicycle", "bicycle bell"): "3", ("bicycle", "bike poster"): "1", ("canned soup", "tin soup"): "3"}
    chat = Chat(keywords, grades | {("mittens", "leather gloves"): "who knows"})
    with serve(chat) as url:
        report = evaluate.run(with_llm_url(shop, url))
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
    agreement = {"pairs": 3, "accepted": 2, "relevant": 3, "precision": 1.0, "recall": 0.6667}  # i4 i6, but not i3
    assert judge["agreement"].items() >= agreement.items()
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
