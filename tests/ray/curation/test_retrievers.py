"""Retrievers with an index: a model of ours over its snapshot, and curation with a sentence-transformers model."""

import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from lrem.errors import DataError, SnapshotError
from lrem.modeling.model import ReasoningEmbedder
from lrem.retrieval.retriever_kind import retriever_kind
from lrem.retrieval.retrievers import open_retriever
from ray_apps.curation import curate
from ray_apps.curation.resumable import part_file
from ray_apps.curation.run_folder import open_run
from ray_apps.indexing.embed import build_index, embed
from tests.ray.curation.small_shop import decided_rows
from tests.tiny_encoder import TITLES, save_tiny_encoder

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A hard query that needs the model's meanings and the teacher's words, two easy ones, one without a reasoning."""
    queries = {"q1": "ride a bicycle", "q2": "canned soup", "q3": "cold hands", "q4": "cycling bell"}
    judged = [("q1", "i1"), ("q1", "i2"), ("q2", "i6"), ("q3", "i2"), ("q4", "i4")]
    tables = {
        "items": {"item_id": list(TITLES), "title": list(TITLES.values())},
        "queries": {"query_id": list(queries), "query": list(queries.values())},
        "teacher": {"query_id": ["q1"], "reasoning": ["helmet, steel helmet, mittens, bicycle"]},
        "qrels": {"query_id": [q for q, _ in judged], "item_id": [i for _, i in judged], "grade": [1] * len(judged)},
    }
    for name, table in tables.items():
        write_parquet(pa.table(table), tmp_path / f"world/{name}.parquet")
    return load_config(
        None,
        [
            *(f"run_dir={tmp_path}", "curate.top_k=2", "curate.rl_share=0.4", "curate.test_share=0"),
            *("curate.part_rows=3", "ray.num_cpus=4"),
        ],
    )


def with_retriever(config: Config, folder: Path, **paths: Path) -> Config:
    sections = {"curate": config.curate.model_copy(update={"retriever": str(folder)})}
    return config.model_copy(update=sections | {"paths": config.paths.model_copy(update=paths)})


@pytest.mark.slow
def test_curation_with_an_embedding_model(config: Config, tmp_path: Path) -> None:
    """With a sentence-transformers folder, then with an index snapshot of the same vectors."""
    sentence_model = save_tiny_encoder(tmp_path / "sentences")
    by_folder = with_retriever(config, sentence_model)
    counters = curate.run(by_folder)
    rows = decided_rows(by_folder)
    # "ride a bicycle" retrieves the two bike items; with the keywords the helmet is nearest, then gloves or bike items
    assert (rows["q1"]["reasoning"], rows["q1"]["outcome"]) == ("helmet, steel helmet, mittens", "kept")
    assert {"i1"} <= set(rows["q1"]["items"]) <= {"i1", "i2"}
    assert (rows["q2"]["items"], rows["q2"]["outcome"]) == (["i6"], "kept without reasoning")
    assert (rows["q4"]["items"], rows["q4"]["hard"]) == (["i4"], False)  # "cycling" means "bicycle" to this model only
    assert counters["queries"] == 4
    folder = open_run(by_folder).folder
    index = folder / "retriever" / "index"
    manifest = (index / "manifest.json").stat().st_mtime_ns
    part_file(folder / "decided", 0).unlink()
    assert curate.run(by_folder) == counters
    assert (index / "manifest.json").stat().st_mtime_ns == manifest  # embedded once
    shutil.copytree(index, config.run_dir / "index")
    by_snapshot = with_retriever(config, config.run_dir / "index", model=sentence_model)
    assert curate.run(by_snapshot) == counters
    assert decided_rows(by_snapshot) == rows
    renamed = pa.table({"item_id": list(TITLES), "title": [f"new {title}" for title in TITLES.values()]})
    write_parquet(renamed, config.path("items"))
    with pytest.raises(DataError, match="was not built from .*items.parquet"):
        curate.run(by_snapshot)


def test_a_model_of_ours_over_its_index(config: Config, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    vectors, index = config.run_dir / "vectors", config.run_dir / "index"
    embed(config, tiny_folder, vectors)
    build_index(config, vectors, index)
    assert retriever_kind(str(index)) == "snapshot"
    queries = ["steel helmet", "vest"]
    rankings = open_retriever(str(tiny_folder), config.path("items"), str(index)).search(queries, 6)
    scores = tiny.encode_queries(queries, [None, None]) @ tiny.encode_items(list(TITLES.values())).T
    for ranking, row in zip(rankings, scores, strict=True):
        assert dict(ranking) == pytest.approx(dict(zip(TITLES, row, strict=True)), abs=2e-3)
        assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)
    another_model = save_tiny_encoder(config.run_dir / "sentences")
    with pytest.raises(SnapshotError, match="was built with model"):
        open_retriever(str(another_model), config.path("items"), str(index))
