"""Retrievers over one small catalogue: BM25, a folder of sentence-transformers, one of ours, an index snapshot."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lrem.config import Config, load_config
from lrem.data.files import write_parquet
from lrem.errors import DataError, SnapshotError
from lrem.modeling.model import ReasoningEmbedder
from lrem.retrieval.retrievers import load_text_model, model_fingerprint, open_retriever, retriever_kind
from ray_apps.cluster.session import cluster
from ray_apps.curation import curate, resumable
from ray_apps.indexing.embed import build_index, embed
from tests.tiny_encoder import MEANINGS, TITLES, save_meanings


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    with cluster(load_config(None, ["ray.num_cpus=4"])):
        yield


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_meanings(tmp_path_factory.mktemp("retriever") / "sentences")


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """One hard query that needs the model's meanings and the teacher's words, one easy, one that is not taught."""
    queries = {"q1": "ride a bicycle", "q2": "canned soup", "q3": "cold hands", "q4": "cycling bell"}
    judged = [("q1", "i1"), ("q1", "i2"), ("q2", "i6"), ("q3", "i2"), ("q4", "i4")]
    write_parquet(pa.table({"item_id": list(TITLES), "title": list(TITLES.values())}), tmp_path / "world/items.parquet")
    tables = {
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


def decided(config: Config) -> dict[str, dict]:
    tables = resumable.read_parts(curate.curation_run(config).folder / "decided")
    return {row["query_id"]: row for table in tables for row in table.to_pylist()}


def test_bm25_finds_by_words(config: Config) -> None:
    bm25 = open_retriever("bm25", config.path("items"), "")
    found = bm25.search(["bike helmet", "mittens", "", "the"], 3)
    assert [item for item, _ in found[0]] in (["i1", "i3"], ["i3", "i1"])
    assert found[1:] == [[], [], []]
    assert bm25.search([], 3) == []


def test_a_folder_of_sentence_transformers_gives_unit_vectors(sentences: Path) -> None:
    assert retriever_kind(str(sentences)) == "sentence-transformers"
    model = load_text_model(str(sentences))
    vectors = model.encode_queries(["bicycle bell", "cycling BELL bell"])
    by_hand = np.zeros((2, len(MEANINGS)))
    by_hand[:, 0], by_hand[:, 3] = (1, 1), (1, 2)
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, by_hand, atol=1e-6)
    np.testing.assert_array_equal(model.encode_items(["bicycle bell"])[0], vectors[0])
    assert model.encode_queries([]).shape[0] == 0


def with_retriever(config: Config, folder: Path, **paths: Path) -> Config:
    changed = {"curate": config.curate.model_copy(update={"retriever": str(folder)})}
    return config.model_copy(update=changed | {"paths": config.paths.model_copy(update=paths)})


@pytest.mark.slow
def test_curation_by_meaning(config: Config, sentences: Path) -> None:
    """By a folder of sentence-transformers, and by an index snapshot of the same vectors."""
    given = with_retriever(config, sentences)
    counts = curate.run(given)
    rows = decided(given)
    # "ride a bicycle" finds the two bike items; with the keywords the helmet is nearest, the gloves as near as those
    assert (rows["q1"]["reasoning"], rows["q1"]["outcome"]) == ("helmet, steel helmet, mittens", "kept")
    assert {"i1"} <= set(rows["q1"]["items"]) <= {"i1", "i2"}
    assert (rows["q2"]["items"], rows["q2"]["outcome"]) == (["i6"], "kept without reasoning")
    assert (rows["q4"]["items"], rows["q4"]["hard"]) == (["i4"], False)  # "cycling" is "bicycle" to this model alone
    assert counts["queries"] == 4
    index = curate.curation_run(given).folder / "retriever" / "index"
    manifest = (index / "manifest.json").stat().st_mtime_ns
    resumable.part_file(index.parents[1] / "decided", 0).unlink()
    assert curate.run(given) == counts
    assert (index / "manifest.json").stat().st_mtime_ns == manifest  # embedded once
    shutil.copytree(index, config.run_dir / "index")
    given = with_retriever(config, config.run_dir / "index", model=sentences)
    assert curate.run(given) == counts
    assert decided(given) == rows
    changed = pa.table({"item_id": list(TITLES), "title": [f"new {title}" for title in TITLES.values()]})
    write_parquet(changed, config.path("items"))
    with pytest.raises(DataError, match="was not built from .*items.parquet"):
        curate.run(given)


def test_a_folder_of_ours_over_its_index(config: Config, tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    assert retriever_kind(str(tiny_folder)) == "lrem"
    model = load_text_model(str(tiny_folder))
    texts = ["steel helmet", "vest"]
    np.testing.assert_allclose(model.encode_queries(texts), tiny.encode_queries(texts, [None, None]), atol=1e-5)
    vectors, index = config.run_dir / "vectors", config.run_dir / "index"
    embed(config, tiny_folder, vectors)
    build_index(config, vectors, index)
    assert retriever_kind(str(index)) == retriever_kind("s3://bucket/index") == "snapshot"
    found = open_retriever(str(tiny_folder), config.path("items"), str(index)).search(texts, 6)
    scores = tiny.encode_queries(texts, [None, None]) @ tiny.encode_items(list(TITLES.values())).T
    for ranking, row in zip(found, scores, strict=True):
        assert dict(ranking) == pytest.approx(dict(zip(TITLES, row, strict=True)), abs=2e-3)
        assert [score for _, score in ranking] == sorted((score for _, score in ranking), reverse=True)


def test_an_index_of_another_model_is_refused(config: Config, sentences: Path, tiny_folder: Path) -> None:
    vectors, index = config.run_dir / "vectors", config.run_dir / "index"
    embed(config, sentences, vectors)
    build_index(config, vectors, index)
    with pytest.raises(SnapshotError, match="was built with model"):
        open_retriever(str(tiny_folder), config.path("items"), str(index))


def test_what_is_no_retriever_is_named(tmp_path: Path) -> None:
    assert retriever_kind("bm25") == "bm25"
    with pytest.raises(DataError, match="the retriever bm-25 does not exist: name a model folder"):
        retriever_kind("bm-25")
    with pytest.raises(DataError, match=f"{tmp_path} is no model of sentence-transformers"):
        retriever_kind(str(tmp_path))


def test_a_changed_model_has_another_name(sentences: Path, tmp_path: Path) -> None:
    shutil.copytree(sentences, tmp_path / "same")
    assert model_fingerprint(str(sentences)) == model_fingerprint(str(tmp_path / "same"))
    [weights] = (tmp_path / "same").rglob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(str(sentences)) != model_fingerprint(str(tmp_path / "same"))
