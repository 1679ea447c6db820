"""The inputs of an evaluation: no query that was trained on, judgements, difficulty, oracle reasonings, runs."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from lrem.config import Config, load_config
from lrem.curation.datasheet import NEAR_OTHERS
from lrem.data.files import sha256, write_parquet
from lrem.errors import DataError
from lrem.evaluation.trec import write_qrels, write_run
from lrem.index.bulk_load import ItemBatch, build_snapshot
from lrem.modeling.model import fingerprint
from lrem.retrieval.resolved_retriever import check_index
from ray_apps.curation.bootstrap import bootstrap_settings
from ray_apps.curation.inputs import train_queries
from ray_apps.curation.preflight import resolve_settings
from ray_apps.evaluation import evaluate
from ray_apps.evaluation.inputs import oracle_reasonings, qrels_file, with_difficulty
from ray_apps.evaluation.inputs import test_set as read_test_set
from ray_apps.evaluation.report_builder import comparison_pairs

QUERIES = {"q1": "red coat", "q2": "wool hat", "q3": "warm boots"}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    write_parquet(pa.Table.from_pylist(rows), path)


def query_rows(**columns: Any) -> list[dict[str, Any]]:
    return [{"query_id": q, "query": text} | columns for q, text in QUERIES.items()]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """Three judged queries without a split."""
    config = load_config(None, [f"run_dir={tmp_path}"])
    write_rows(config.path("queries"), query_rows())
    write_rows(config.path("qrels"), [{"query_id": q, "item_id": "i1", "grade": 1} for q in QUERIES])
    return config


def with_settings(config: Config, section: str, **values: Any) -> Config:
    return config.model_copy(update={section: getattr(config, section).model_copy(update=values)})


def test_queries_that_were_trained_on_are_left_out(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert read_test_set(config).left_out == 0  # nothing has been trained yet
    row = {"reasoning": "", "item_id": "i1", "title": "red coat"}
    parts = config.run_dir / "triplets"
    trained = with_settings(config, "paths", triplets=parts)
    write_rows(parts / "1.parquet", [{"query_id": "q1", "query": "red coat"} | row] * 2)
    write_rows(
        parts / "2.parquet", [{"query_id": "q2", "query": "another shop's"} | row]
    )  # the same id, but another text
    test = read_test_set(trained)
    assert (list(test.queries), list(test.qrels), test.left_out) == (["q2", "q3"], ["q2", "q3"], 1)
    assert "1 of 3 test queries left out: they were trained on" in capsys.readouterr().out
    pairs = [{"query_id": q, "query": QUERIES[q]} | row for q in ("q1", "q3")]
    write_rows(config.path("rl_pairs"), pairs)
    assert list(read_test_set(trained).queries) == ["q2"]
    by_address = with_settings(
        trained, "paths", triplets=parts.as_uri(), rl_pairs=(config.run_dir / "nothing").as_uri()
    )
    assert list(read_test_set(by_address).queries) == ["q2", "q3"]
    write_rows(config.path("rl_pairs"), [*pairs, {"query_id": "q2", "query": "wool hat"} | row])
    with pytest.raises(DataError, match=r"queries\.parquet was trained on.*curate\.test_share=0\.1"):
        read_test_set(trained)


@pytest.mark.parametrize(
    ("file", "row", "message"),
    [
        ("qrels", {"query_id": "q1", "item_id": "i1", "grade": 0}, "query_id 'q1', item_id 'i1' occurs"),
        ("queries", {"query_id": "q2", "query": "another text"}, "query_id 'q2' occurs"),
        ("gold", {"query_id": "q1", "reasoning": "wool"}, "query_id 'q1' occurs"),
    ],
)
def test_a_repeated_row_is_refused(config: Config, file: str, row: dict[str, Any], message: str) -> None:
    write_rows(config.path("gold"), [{"query_id": "q1", "reasoning": "coat"}])
    table = pa.parquet.read_table(config.path(file))
    write_parquet(pa.concat_tables([table, pa.Table.from_pylist([row], table.schema)]), config.path(file))
    with pytest.raises(DataError, match=f"{file}.parquet: {message} more than once"):
        oracle_reasonings(config, dict(read_test_set(config).queries))


def test_bootstrapped_judgements_are_used_if_there_are_no_others(config: Config, tmp_path: Path) -> None:
    bootstrapped = tmp_path / "bootstrap" / "qrels.parquet"
    write_rows(bootstrapped, [{"query_id": "q2", "item_id": "i2", "grade": 1}])
    assert qrels_file(config) == config.path("qrels")
    config.path("qrels").unlink()
    assert qrels_file(config) == bootstrapped
    assert read_test_set(config).qrels == {"q2": {"i2": 1}}
    named = with_settings(config, "paths", qrels=tmp_path / "mine.parquet")
    assert qrels_file(named) == tmp_path / "mine.parquet"  # a configured file is not replaced
    with pytest.raises(DataError, match=r"mine\.parquet does not exist"):
        read_test_set(named)
    bootstrapped.unlink()
    with pytest.raises(DataError, match=r"qrels\.parquet does not exist: run `lrem import`.* `lrem bootstrap"):
        read_test_set(config)


def test_judgements_in_trecs_format(config: Config, tmp_path: Path) -> None:
    write_qrels({"q1": {"i1": 2, "i2": 0}, "q9": {"i1": 1}}, tmp_path / "judged.qrels")
    assert read_test_set(with_settings(config, "paths", qrels=tmp_path / "judged.qrels")).qrels == {
        "q1": {"i1": 2, "i2": 0}
    }


def test_difficulty_is_added_unless_the_queries_have_one(config: Config) -> None:
    items = pa.table({"item_id": ["i1", "i2"], "title": ["red coat", "winter shoes"]})
    queries = {row["query_id"]: row for row in query_rows()}
    qrels = {"q1": {"i1": 1}, "q2": {"i1": 1, "gone": 1}, "q3": {"i2": 0}}

    def difficulties(config: Config) -> dict[str, str]:
        return {q: row["difficulty"] for q, row in with_difficulty(config, queries, qrels, items).items()}

    # found; not found; nothing relevant to find, which curation calls hard
    assert difficulties(config) == {"q1": "easy", "q2": "hard", "q3": "hard"}
    overlap = config.curate.difficulty.model_copy(update={"recall_below": None, "overlap_below": 0.5})
    assert difficulties(with_settings(config, "curate", difficulty=overlap)) == {
        "q1": "easy",
        "q2": "hard",
        "q3": "hard",
    }
    none = config.curate.difficulty.model_copy(update={"recall_below": None})
    assert with_difficulty(with_settings(config, "curate", difficulty=none), queries, qrels, items) is queries
    own = {q: row | {"difficulty": "rare" if q == "q1" else None} for q, row in queries.items()}
    assert with_difficulty(config, own, qrels, items) is own


def test_oracle_reasonings_come_from_the_file_or_the_queries(config: Config) -> None:
    queries = {"q1": {"query": "red coat", "reasoning": "wool"}, "q2": {"reasoning": ""}, "q3": {"reasoning": None}}
    assert oracle_reasonings(config, queries) == {"q1": "wool"}
    assert oracle_reasonings(config, {"q1": {"query": "red coat"}}) == {}
    write_rows(config.path("gold"), [{"query_id": q, "reasoning": "down"} for q in ("q2", "q9")])
    assert oracle_reasonings(config, queries) == {"q2": "down"}


def test_external_runs_need_another_name_and_these_queries(config: Config, tmp_path: Path) -> None:
    queries = {row["query_id"]: row for row in query_rows()}
    ours = write_run({"q2": [("i1", 1.0)]}, tmp_path / "ours.run", "ours")
    theirs = write_run({"x": [("i1", 1.0)]}, tmp_path / "theirs.run", "theirs")
    assert evaluate.external_runs(with_settings(config, "evaluate", runs={"ours": ours}), queries) == {
        "ours": {"q2": [("i1", 1)]}
    }
    for name in ("bm25", "lrem", "rrf", "always", "lrem-auto"):
        with pytest.raises(DataError, match=f"'{name}'"):
            evaluate.external_runs(with_settings(config, "evaluate", runs={name: ours}), queries)
    with pytest.raises(DataError, match=r"theirs\.run .*3 test queries .*'q1'"):
        evaluate.external_runs(with_settings(config, "evaluate", runs={"theirs": theirs}), queries)


def test_an_index_of_another_catalogue_is_refused(config: Config, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"weights")
    write_rows(config.path("items"), [{"item_id": "i1", "title": "red coat"}])
    batch = ItemBatch(["i1"], [{"title": "red coat"}], np.array([[1, 0]], np.float32))
    build_snapshot(config.path("index"), [batch], fingerprint(model), 2, None, sha256(config.path("items")))
    check_index(config.uri("index"), fingerprint(model), config.path("items"))
    write_rows(config.path("items"), [{"item_id": "i1", "title": "blue coat"}])
    with pytest.raises(DataError, match=r"was not built from .*items\.parquet"):
        check_index(config.uri("index"), fingerprint(model), config.path("items"))


def test_the_two_best_systems_are_compared_once() -> None:
    scores = {"bm25": 0.2, "bm25_stems": 0.3, "direct": 0.4, "lrem": 0.1}
    assert comparison_pairs(scores, False) == [
        *(("lrem", "bm25"), ("lrem", "bm25_stems"), ("lrem", "direct"), ("direct", "bm25_stems"))
    ]
    assert comparison_pairs({"bm25": 0.2, "bm25_stems": 0.1, "lrem": 0.3}, True) == [
        *(("lrem", "bm25"), ("lrem", "bm25_stems"), ("always", "never"), ("auto", "never"))
    ]


def test_curation_sets_a_test_share_aside_unless_something_says_otherwise(config: Config) -> None:
    def share(**values: Any) -> float | None:
        return resolve_settings(with_settings(config, "curate", **values)).curate.test_share

    assert (share(), share(test_share=0.0), share(test_share=0.3)) == (0.1, 0.0, 0.3)
    assert bootstrap_settings(config).curate.test_share == 0
    requested = with_settings(config, "curate", test_share=0.2)
    assert bootstrap_settings(requested).curate.test_share == 0.2
    write_rows(config.path("queries"), query_rows(split="train"))
    assert (share(), share(test_share=0.3)) == (0.0, 0.3)
    config.path("queries").unlink()
    with pytest.raises(DataError, match=r"queries\.parquet does not exist"):
        share()


def test_no_near_duplicate_of_another_split_is_curated(config: Config) -> None:
    rows = {
        **{"t1": ("red wool coat for men", "test"), "t2": ("blue hat", "dev"), "t3": ("green scarf", None)},
        **{"a": ("coats of red wool, men", "train"), "b": ("long warm red wool coat men", "train")},
        **{"c": ("warm red wool coat men", "train"), "d": ("blue hats", "train"), "e": ("blue hat xl", "train")},
        **{"f": ("green scarf", "train")},
    }
    write_rows(
        config.path("queries"),
        [{"query_id": q, "query": text, "split": split} for q, (text, split) in rows.items()],
    )
    left_out = Counter[str]()
    kept = [q for batch in train_queries(config, left_out) for q in batch["query_id"].to_pylist()]
    # "a" and "d" have the same words; "c" shares four of five; "b" has two more than t1; "e" is too short
    assert (kept, left_out) == (["b", "e", "f"], {NEAR_OTHERS: 3})
    write_rows(config.path("queries"), query_rows())
    left_out = Counter[str]()
    assert sum(batch.num_rows for batch in train_queries(config, left_out)) == 3
    assert not left_out
