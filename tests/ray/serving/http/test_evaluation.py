"""The evaluation of a running service equals the evaluation of its files."""

from pathlib import Path

import pyarrow as pa
import pytest

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from lrem.errors import DataError
from lrem.evaluation.metrics import per_query, summarise
from lrem.evaluation.trec import read_qrels, read_run
from ray_apps.evaluation import evaluate
from tests.serving import QUERIES, TITLES, Served


def test_scores_of_the_service_equal_those_of_its_files(served: Served, world: Config, tmp_path: Path) -> None:
    queries = {f"q{i}": query for i, query in enumerate(QUERIES)}
    table = {
        "query_id": list(queries),
        "query": list(queries.values()),
        "category": ["negative", "easy"] * 3 + ["easy"],
    }
    qrels = [(q, f"p{i}", (i + n) % 3) for n, q in enumerate(queries) for i in range(0, len(TITLES), 2)]
    names = ("query_id", "item_id", "grade")
    write_parquet(pa.table(table), tmp_path / "world" / "queries.parquet")
    write_parquet(
        pa.table(dict(zip(names, zip(*qrels, strict=True), strict=True))), tmp_path / "world" / "qrels.parquet"
    )
    items = {"item_id": [f"p{i}" for i in range(len(TITLES))], "title": TITLES}
    write_parquet(pa.table(items), tmp_path / "world" / "items.parquet")
    settings = [f"run_dir={tmp_path}", *(f"paths.{name}={world.path(name)}" for name in ("model", "index"))]
    local = evaluate.run(load_config(None, [*settings, "evaluate.fusion=[1, 2]"]))
    remote = evaluate.run(load_config(None, [*settings, f"evaluate.url={served.url}"]))
    for mode in ("never", "auto", "always"):
        assert remote["routing"][mode]["scores"] == local["routing"][mode]["scores"]
        assert remote["routing"][mode]["thinks"] == local["routing"][mode]["thinks"]
    assert [local["routing"][mode]["thinks"] for mode in ("never", "always")] == [0, 1]
    for name in ("bm25", "bm25_stems", "lrem", "rewrite", "rrf"):
        assert remote["systems"][name] == local["systems"][name], name
    assert set(local["systems"]) == {"bm25", "bm25_stems", "lrem", "rewrite", "rrf"}
    assert set(local["overrides"]) == {"own", "empty", "random", "query"}
    assert (set(local["lengths"]), set(local["fusion"])) == ({"4", "8", "16"}, {"1", "2"})
    assert local["slices"] == {"all": 7, "hard": 3, "negative": 3, "easy": 4, "difficulty=hard": 7}
    ranking = read_run(tmp_path / "evaluation" / "lrem-always.run")  # written by the second evaluation, of the service
    scores = per_query(ranking, read_qrels(tmp_path / "evaluation" / "qrels.txt"), world.evaluate.k, 10)
    assert summarise(scores, {"all": list(queries)})["all"] == pytest.approx(
        local["routing"]["always"]["scores"]["all"]
    )
    assert "</html>" in (tmp_path / "evaluation.html").read_text()


def test_an_unreachable_service_and_an_unknown_measure_are_refused(world: Config, tmp_path: Path) -> None:
    write_parquet(pa.table({"query_id": ["q"], "query": ["tea"]}), tmp_path / "world" / "queries.parquet")
    write_parquet(pa.table({"query_id": ["q"], "item_id": ["p0"], "grade": [1]}), tmp_path / "world" / "qrels.parquet")
    write_parquet(pa.table({"item_id": ["p0"], "title": ["tea pot"]}), tmp_path / "world" / "items.parquet")
    config = load_config(None, [f"run_dir={tmp_path}", "evaluate.url=http://127.0.0.1:9"])
    with pytest.raises(ConnectionError, match="http://127.0.0.1:9"):
        evaluate.run(config)
    unknown = load_config(None, [f"run_dir={tmp_path}", "evaluate.primary=nDCG@7"])
    with pytest.raises(DataError, match="evaluate.primary.*nDCG@7.*hit_rate"):
        evaluate.run(unknown)
