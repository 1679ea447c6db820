"""Curation with a teacher on vLLM: a tiny model that has learnt its answers by heart."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from lrem.config import ModelConfig
from lrem.curation.prompts import extraction_messages, reasoning_messages
from lrem.data.files import write_parquet
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.curation import curate
from ray_apps.llm.vllm_batch import tokenize_prompt
from tests.ray.curation.small_shop import (
    QUERIES,
    answer_count,
    dead_letters,
    decided_rows,
    results,
    small_shop,
    with_settings,
)

pytestmark = pytest.mark.usefixtures("ray_cluster")

LEARNT = {  # answers to the second question
    "ride a bike": "helmet, gloves",
    "storm outside": "rubber boots, umbrella",
    "cold ears": "hat",
    "something nice": "!!!",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, trained on the prompts and their answers until it repeats them."""
    lessons = [lesson for query, answer in LEARNT.items() for lesson in _lessons(query, answer)]
    tokenizer = train_tokenizer([messages[0]["content"] + answer for messages, answer in lessons], 1200)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 2, "kv_heads": 2, "max_positions": 512}
    model = ReasoningEmbedder.from_config(ModelConfig(**sizes), tokenizer, seed=0)
    rows = [
        (tokenize_prompt(messages, tokenizer), tokenizer(answer + tokenizer.eos_token)["input_ids"])
        for messages, answer in lessons
    ]
    length = max(len(prompt) + len(answer) for prompt, answer in rows)
    ids = torch.tensor([prompt + answer + [0] * (length - len(prompt + answer)) for prompt, answer in rows])
    labels = torch.tensor(
        [[-100] * len(prompt) + answer + [-100] * (length - len(prompt + answer)) for prompt, answer in rows]
    )
    optimizer = torch.optim.Adam(model.lm.parameters(), lr=5e-3)
    for _ in range(300):  # causal attention: padding at the end needs no mask
        loss = model.lm(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.03:
            break
    assert loss.item() < 0.03
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model.save(folder)
    return folder


def _lessons(query: str, answer: str) -> Iterator[tuple[list[dict[str, str]], str]]:
    yield reasoning_messages(query), f" {query}"
    yield extraction_messages(query, f" {query}"), f" {answer}"


@pytest.mark.slow
def test_a_teacher_on_vllm(tmp_path: Path, teacher: Path) -> None:
    config = small_shop(tmp_path)
    llm = {"model": str(teacher), "dtype": "float32", "max_model_len": 512, "max_tokens": 12, "temperature": 0.0}
    config = with_settings(config, teacher="llm", llm=config.curate.llm.model_copy(update=llm))
    assert curate.run(config)["queries"] == len(QUERIES)
    first = decided_rows(config)
    assert results(config) == {
        "q1": ("kept", "helmet, gloves", ["i1", "i2"]),
        "q2": ("kept", "rubber boots, umbrella", ["i8", "i9"]),
        "q3": ("kept without reasoning", "", ["i6"]),
        "q4": ("kept", "hat", ["i7"]),
        "q5": ("kept without reasoning", "", ["i9"]),
        "q6": ("kept", "rubber boots, umbrella", ["i8"]),
        "q7": ("the teacher failed", "", []),
    }
    [letter] = dead_letters(config)
    assert (letter["query_id"], letter["query"]) == ("q7", "something nice")
    assert "no keyword phrase in the answer: '!!!'" in letter["reason"]
    assert answer_count(config) == 2 * len(LEARNT) - 1  # an unreadable answer is not kept
    queries = pq.read_table(config.path("queries")).slice(0, 6)  # without q7 there is nothing left to ask
    write_parquet(queries, config.path("queries"))
    impossible = config.curate.llm.model_copy(update={"batch_size": 1, "tensor_parallel": 99})  # would need 99 CPUs
    assert curate.run(with_settings(config, llm=impossible))["queries"] == 6
    assert {query: row["items"] for query, row in decided_rows(config).items()} == {
        query: row["items"] for query, row in first.items() if query != "q7"
    }
    assert dead_letters(config) == []
    assert answer_count(config) == 2 * len(LEARNT) - 1
