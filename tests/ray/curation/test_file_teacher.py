"""Curation with a file of reasonings: files that are replaced or kept, and a cross-encoder as judge."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from lrem.data.files import write_parquet
from lrem.data.words import words
from lrem.errors import DataError
from ray_apps.curation import curate
from tests.ray.curation.small_shop import (
    KNOWN_GRADES,
    QUERIES,
    TITLES,
    datasheet,
    dead_letters,
    decided_rows,
    small_shop,
    with_settings,
)

pytestmark = [pytest.mark.usefixtures("ray_cluster"), pytest.mark.slow]


def test_only_our_files_are_replaced_and_only_by_rows(tmp_path: Path) -> None:
    """Without a dev and a test share, a dev file of the user is kept and our test file of an earlier split is not."""
    config = small_shop(tmp_path)
    write_parquet(pa.table({"query_id": ["q1", "q4"], "reasoning": ["helmet", "hat"]}), config.path("teacher"))
    own_dev, old_test = tmp_path / "own.parquet", config.path("triplets").with_name("test.parquet")
    for file in (own_dev, old_test):
        write_parquet(pa.table({"own": [1]}), file)
    folder = tmp_path / "queries"  # an input may be a folder of files
    write_parquet(pq.read_table(config.path("queries")), folder / "1.parquet")
    config = config.model_copy(update={"paths": config.paths.model_copy(update={"dev": own_dev, "queries": folder})})
    counters = curate.run(config)
    assert pq.read_table(own_dev).to_pylist() == [{"own": 1}]
    assert not old_test.exists()
    assert (counters["queries"], counters["dev"], "test" in counters) == (7, 0, False)
    write_parquet(pa.table({"query_id": ["q9"], "query": ["steel helmet"]}), folder / "2.parquet")
    assert curate.run(config)["queries"] == 8  # a changed input is cut into parts again
    with pytest.raises(DataError, match=r"rl_share, dev_share and test_share"):
        curate.run(with_settings(config, rl_share=0.6, dev_share=0.2, test_share=0.2))


def save_cross_encoder(folder: Path) -> Path:
    """Save a tiny cross-encoder with random weights, wide enough that it gives both verdicts."""
    vocabulary = sorted({word for text in (*TITLES.values(), *QUERIES.values()) for word in words(text)})
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *vocabulary]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(5)
    sizes = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.8,
    )
    BertForSequenceClassification(sizes).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_a_cross_encoder_judges(tmp_path: Path) -> None:
    model = CrossEncoder(str(save_cross_encoder(tmp_path / "cross")))
    config = small_shop(tmp_path, judge="cross_encoder", cross_encoder=str(tmp_path / "cross"))
    reasonings = {"q1": "helmet, gloves, vest", "q2": "rubber boots, umbrella, hat", "q4": "hat", "q7": "safety"}
    write_parquet(
        pa.table({"query_id": list(reasonings), "reasoning": list(reasonings.values())}), config.path("teacher")
    )
    candidates = {
        **{"q1": ["i1", "i2", "i5"], "q2": ["i7", "i8", "i9"], "q3": ["i6"]},
        **{"q4": ["i7"], "q5": ["i9"], "q7": ["i5"]},
    }
    scores = {
        (query, item): float(model.predict([(QUERIES[query], TITLES[item])])[0])
        for query, items in candidates.items()
        for item in items
    }
    accept = sorted(scores.values())[len(scores) // 2] - 1e-6  # half of them are accepted
    config = with_settings(config, accept=accept)
    queries = [*pq.read_table(config.path("queries")).to_pylist(), {"query_id": "q8", "query": "qqq"}]
    write_parquet(pa.Table.from_pylist(queries), config.path("queries"))  # q8 retrieves nothing and has no judgements
    curate.run(config)
    rows = decided_rows(config)
    for query, items in candidates.items():
        assert sorted(rows[query]["items"]) == [item for item in items if scores[query, item] >= accept]
    assert (rows["q8"]["outcome"], rows["q8"]["items"]) == ("no teacher", [])
    judge = datasheet(config)["judge"]
    agreements = [
        (score >= accept) == (KNOWN_GRADES[pair] > 0) for pair, score in scores.items() if pair in KNOWN_GRADES
    ]
    assert judge["agreement with known grades"]["accuracy"] == round(sum(agreements) / len(agreements), 4)
    assert judge["pairs"] == len(scores)
    assert dead_letters(config) == []
