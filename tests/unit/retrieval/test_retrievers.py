"""Retrievers over one small catalogue: what a setting names, BM25, and models by their folder."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lrem.data.files import write_parquet
from lrem.errors import DataError
from lrem.modeling.model import ReasoningEmbedder
from lrem.retrieval.retriever_kind import retriever_kind
from lrem.retrieval.retrievers import open_retriever
from lrem.retrieval.text_model import load_text_model, model_fingerprint
from tests.tiny_encoder import SYNONYMS, TITLES, save_tiny_encoder


@pytest.fixture(scope="module")
def sentence_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_encoder(tmp_path_factory.mktemp("retriever") / "sentences")


def test_bm25_retrieves_by_words(tmp_path: Path) -> None:
    items = tmp_path / "items.parquet"
    write_parquet(pa.table({"item_id": list(TITLES), "title": list(TITLES.values())}), items)
    bm25 = open_retriever("bm25", items, "")
    rankings = bm25.search(["bike helmet", "mittens", "", "the"], 3)
    assert [item for item, _ in rankings[0]] in (["i1", "i3"], ["i3", "i1"])
    assert rankings[1:] == [[], [], []]
    assert bm25.search([], 3) == []


def test_a_sentence_transformers_folder_gives_unit_vectors(sentence_model: Path) -> None:
    assert retriever_kind(str(sentence_model)) == "sentence-transformers"
    model = load_text_model(str(sentence_model))
    vectors = model.encode_queries(["bicycle bell", "cycling BELL bell"])
    by_hand = np.zeros((2, len(SYNONYMS)))
    by_hand[:, 0], by_hand[:, 3] = (1, 1), (1, 2)
    by_hand /= np.linalg.norm(by_hand, axis=1, keepdims=True)
    np.testing.assert_allclose(vectors, by_hand, atol=1e-6)
    np.testing.assert_array_equal(model.encode_items(["bicycle bell"])[0], vectors[0])
    assert model.encode_queries([]).shape[0] == 0


def test_a_folder_of_ours_embeds_queries_without_reasoning(tiny: ReasoningEmbedder, tiny_folder: Path) -> None:
    assert retriever_kind(str(tiny_folder)) == "lrem"
    queries = ["steel helmet", "vest"]
    vectors = load_text_model(str(tiny_folder)).encode_queries(queries)
    np.testing.assert_allclose(vectors, tiny.encode_queries(queries, [None, None]), atol=1e-5)


def test_a_setting_that_names_no_retriever_is_an_error(tmp_path: Path) -> None:
    assert retriever_kind("bm25") == "bm25"
    assert retriever_kind("s3://bucket/index") == "snapshot"
    with pytest.raises(DataError, match="bm-25 does not exist"):
        retriever_kind("bm-25")
    with pytest.raises(DataError, match=f"{tmp_path} is neither"):
        retriever_kind(str(tmp_path))


def test_a_changed_weight_changes_the_fingerprint(sentence_model: Path, tmp_path: Path) -> None:
    shutil.copytree(sentence_model, tmp_path / "same")
    assert model_fingerprint(str(sentence_model)) == model_fingerprint(str(tmp_path / "same"))
    [weights] = (tmp_path / "same").rglob("*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert model_fingerprint(str(sentence_model)) != model_fingerprint(str(tmp_path / "same"))
