"""Curation with every teacher and every judge: language models over HTTP and by vLLM, the catalogue, cross-encoders.

One small shop for what can be followed by hand; the demo world, with near-duplicates put in, for what has to hold.
"""

import json
import re
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast
from typer.testing import CliRunner

from lrem.config import BootstrapConfig, Config, ModelConfig, load_config
from lrem.curation.prompts import extraction_messages, judge_messages, reasoning_messages
from lrem.curation.split_assignment import FAILED
from lrem.curation.teacher import DEFAULT_BUDGET
from lrem.data.files import write_json, write_parquet
from lrem.data.words import content_words, stem, words
from lrem.errors import DataError
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from lrem.retrieval.bm25 import Bm25
from lrem.world import make_world
from ray_apps.cli.main import app
from ray_apps.cluster.session import cluster
from ray_apps.curation import bootstrap, curate, resumable
from ray_apps.curation.estimate import plan
from ray_apps.evaluation import inputs
from ray_apps.llm.vllm_batch import tokenize_prompt
from tests.chat_server import Chat, serve

TITLES = {
    **{"i1": "steel helmet", "i2": "leather gloves", "i3": "paper bike poster", "i4": "bike bell", "i5": "safety vest"},
    **{"i6": "tin soup", "i7": "wool hat", "i8": "rubber boots", "i9": "black umbrella"},
}
QUERIES = {
    **{"q1": "ride a bike", "q2": "storm outside", "q3": "tin soup", "q4": "cold ears", "q5": "black umbrella"},
    **{"q6": "storm   outside ", "q7": "something nice"},
}
KEYWORDS = {
    "ride a bike": "Keywords: helmet, gloves, bike",
    "storm outside": "1. rubber boots\n2. umbrella\n3. hat",
    "cold ears": "<think>ears…</think>hat",
    "something nice": "I'm sorry, I can't help with that.",
}
LEARNT = {  # what the tiny model says to the second question
    "ride a bike": "helmet, gloves",
    "storm outside": "rubber boots, umbrella",
    "cold ears": "hat",
    "something nice": "!!!",
}
GRADES = {
    ("ride a bike", "steel helmet"): "3",
    ("ride a bike", "leather gloves"): "Grade: 1",
    ("storm outside", "rubber boots"): "2",
    ("storm outside", "black umbrella"): "who knows",
    ("storm outside", "wool hat"): "3",
    ("tin soup", "tin soup"): "3",
    ("cold ears", "wool hat"): "2",
    ("black umbrella", "black umbrella"): "**3**",
}
KNOWN = {
    **{("q1", "i1"): 1, ("q1", "i2"): 1, ("q1", "i4"): 0, ("q2", "i8"): 2, ("q2", "i9"): 1, ("q2", "i7"): 0},
    **{("q3", "i6"): 1, ("q4", "i7"): 1, ("q5", "i9"): 3, ("q6", "i8"): 1, ("q7", "i5"): 1},
}
ASKED = {
    *((kind, query, "") for query in KEYWORDS for kind in ("think", "keywords")),
    *(("judge", query, title) for query, title in GRADES),
}
UNREADABLE = {("keywords", "something nice", ""), ("judge", "storm outside", "black umbrella")}


@pytest.fixture(scope="module", autouse=True)
def ray_is_up() -> Iterator[None]:
    with cluster(load_config(None, ["ray.num_cpus=4"])):
        yield


def shop(folder: Path, **change: Any) -> Config:
    """The small shop in a folder, nothing of it kept for a test; `change` replaces settings of `curate`."""
    tables = {
        "items": {"item_id": list(TITLES), "title": list(TITLES.values())},
        "queries": {"query_id": list(QUERIES), "query": list(QUERIES.values())},
        "qrels": {
            "query_id": [query for query, _ in KNOWN],
            "item_id": [item for _, item in KNOWN],
            "grade": list(KNOWN.values()),
        },
    }
    for name, table in tables.items():
        write_parquet(pa.table(table), folder / f"world/{name}.parquet")
    config = load_config(None, [f"run_dir={folder}", "curate.top_k=4", "curate.rl_share=0.5", "ray.num_cpus=4"])
    return changed(config, part_rows=3, test_share=0.0, **change)


def changed(config: Config, **change: Any) -> Config:
    return config.model_copy(update={"curate": config.curate.model_copy(update=change)})


def asked_at(config: Config, url: str, judge: str | None = None) -> Config:
    """Teacher and judge at an address, or the judge at another one."""
    how = {"engine": "url", "model": "m", "concurrency": 3, "retries": 0, "timeout_s": 30.0}
    llm = config.curate.llm.model_copy(update=how | {"url": url})
    judge_llm = config.curate.judge_llm.model_copy(update=how | {"url": judge or url})
    return changed(config, teacher="llm", llm=llm, judge="llm", judge_llm=judge_llm)


def decided(config: Config) -> dict[str, dict[str, Any]]:
    tables = resumable.read_parts(curate.curation_run(config).folder / "decided")
    return {row["query_id"]: row for table in tables for row in table.to_pylist()}


def dead_letters(config: Config) -> list[dict[str, str]]:
    file = config.path("triplets").with_name("dead_letters.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def outputs(config: Config) -> dict[str, bytes]:
    """What a run has written, less the names of folders and addresses."""
    folder = config.path("triplets").parent
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def answer_count(config: Config) -> int:
    with sqlite3.connect(config.path("triplets").parent / "work" / "answers.sqlite") as answers:
        return int(answers.execute("SELECT count(*) FROM answers").fetchone()[0])


@pytest.fixture(scope="module")
def untroubled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any], Counter]:
    """A run whose every question is answered at once; its settings, what it returned, and what was asked."""
    chat = Chat(KEYWORDS, GRADES)
    with serve(chat) as url:
        config = asked_at(shop(tmp_path_factory.mktemp("untroubled")), url)
        return config, curate.run(config), chat.calls


def test_a_teacher_and_a_judge_over_http(untroubled: tuple[Config, dict[str, Any], Counter]) -> None:
    config, counts, calls = untroubled
    assert calls == dict.fromkeys(ASKED, 1)  # q6 is q2 in other spacing: one question for both
    rows = decided(config)
    assert {query: (row["outcome"], row["reasoning"], sorted(row["items"])) for query, row in rows.items()} == {
        "q1": ("kept", "helmet, gloves", ["i1"]),
        "q2": ("kept", "rubber boots, umbrella, hat", ["i7", "i8"]),
        "q3": ("kept without reasoning", "", ["i6"]),
        "q4": ("kept", "hat", ["i7"]),
        "q5": ("kept without reasoning", "", ["i9"]),
        "q6": ("kept", "rubber boots, umbrella, hat", ["i7", "i8"]),
        "q7": ("the teacher failed", "", []),
    }
    assert counts["queries"] == len(QUERIES)
    written = [row for name in ("triplets", "rl_pairs") for row in pq.read_table(config.path(name)).to_pylist()]
    wanted = [(query, item) for query, row in rows.items() for item in row["items"]]
    assert sorted((row["query_id"], row["item_id"]) for row in written) == sorted(wanted)
    assert len(wanted) == counts["triplets"] + counts["rl_pairs"]


def test_the_datasheet_tells_how_far_the_judge_agrees(untroubled: tuple[Config, dict[str, Any], Counter]) -> None:
    config, _, _ = untroubled
    sheet = json.loads(config.path("triplets").with_name("datasheet.json").read_text())
    assert sheet["judge"] == {
        **{"kind": "llm", "model": "m", "accept": 0.5, "pairs": 9, "without a readable answer": 2},
        # Of pairs with a known grade: yes yes q1-i1 q2-i8 q6-i8 q3-i6 q4-i7 q5-i9; yes no q2-i7; no yes q1-i2.
        # By chance 7/8 × 7/8 + 1/8 × 1/8 = 0.78125; (0.75 − 0.78125) / (1 − 0.78125) = −0.1429
        "agreement with known grades": {
            **{"pairs": 8, "accepted": 7, "relevant": 7, "accuracy": 0.75},
            **{"precision": 0.8571, "recall": 0.8571, "kappa": -0.1429},
        },
    }
    assert sheet["near-duplicates"] == {"near-duplicates": 1, "largest group": 2}
    assert sheet["phrases"] == {"written": 10, "dropped: of the query": 1}  # "bike"
    assert sheet["outcomes"] == {"kept": 4, "kept without reasoning": 2, "the teacher failed": 1}


def test_dead_letters_are_the_queries_without_a_usable_answer(
    untroubled: tuple[Config, dict[str, Any], Counter],
) -> None:
    config, _, _ = untroubled
    told = {(row["step"], row["query_id"], row.get("item_id")): row["reason"] for row in dead_letters(config)}
    assert set(told) == {("teacher, keywords", "q7", None), ("judge", "q2", "i9"), ("judge", "q6", "i9")}
    assert "no keyword phrase in the answer" in told["teacher, keywords", "q7", None]
    assert "no grade from 0 to 3" in told["judge", "q2", "i9"]


def test_running_again_asks_what_could_not_be_read(untroubled: tuple[Config, dict[str, Any], Counter]) -> None:
    config, counts, _ = untroubled
    before = outputs(config)
    assert answer_count(config) == len(ASKED - UNREADABLE)
    chat = Chat(KEYWORDS, GRADES)
    with serve(chat) as url:  # another address is no other question
        assert curate.run(asked_at(config, url)) == counts
    assert chat.calls == dict.fromkeys(UNREADABLE, 1)
    assert answer_count(config) == len(ASKED - UNREADABLE)
    assert outputs(config) == before


@pytest.mark.slow
def test_what_failed_is_asked_again_and_only_that(
    untroubled: tuple[Config, dict[str, Any], Counter], tmp_path: Path
) -> None:
    """First the teacher fails at times and the judge is not there; then the judge fails at times; then all is well."""
    chat = Chat(KEYWORDS, GRADES)
    thinking, words_of_q2 = ("think", "ride a bike", ""), ("keywords", "storm outside", "")
    grade = ("judge", "tin soup", "tin soup")
    with serve(chat) as url:
        config = asked_at(shop(tmp_path), url)
        chat.refused = {thinking, words_of_q2, grade}
        with pytest.raises(ConnectionError, match="no answer from http://127.0.0.1:9/v1"):
            curate.run(asked_at(config, url, judge="http://127.0.0.1:9/v1"))
        chat.refused = {words_of_q2, grade}
        curate.run(config)
        letters = {(row["step"], row["query_id"]): row["reason"] for row in dead_letters(config)}
        assert letters == {
            ("teacher, keywords", "q2"): "400: not keywords today",
            ("teacher, keywords", "q6"): "400: not keywords today",
            ("teacher, keywords", "q7"): letters["teacher, keywords", "q7"],
            ("judge", "q3"): "400: not judge today",
        }
        rows = decided(config)
        assert {query for query, row in rows.items() if row["outcome"] == FAILED} == {"q2", "q6", "q7"}
        assert (rows["q3"]["outcome"], rows["q3"]["items"]) == ("the judge failed", [])
        chat.refused = set()
        counts = curate.run(config)
    again = {thinking: 2, words_of_q2: 3, grade: 2, ("keywords", "something nice", ""): 3}
    assert chat.calls == dict.fromkeys(ASKED, 1) | again
    whole, counted, _ = untroubled
    assert counts == counted
    assert decided(config) == decided(whole)
    assert outputs(config) == outputs(whole)


@pytest.mark.slow
def test_a_log_without_judgements_needs_none(tmp_path: Path) -> None:
    chat = Chat(KEYWORDS, GRADES)
    with serve(chat) as url:
        config = asked_at(shop(tmp_path), url)
        config.path("qrels").unlink()
        config = changed(config, difficulty=config.curate.difficulty.model_copy(update={"overlap_below": 0.5}))
        curate.run(config)
    rows = decided(config)
    # by overlap with the titles found: "storm outside" finds none; "ride a bike" has one word of two
    assert {query for query, row in rows.items() if row["hard"]} == {"q2", "q4", "q6", "q7"}
    assert sorted(rows["q2"]["items"]) == ["i7", "i8"]
    sheet = json.loads(config.path("triplets").with_name("datasheet.json").read_text())
    assert sheet["judge"]["agreement with known grades"] == {"pairs": 0, "accepted": 0, "relevant": 0}
    with pytest.raises(DataError, match="qrels.parquet does not exist"):
        curate.run(changed(config, judge="known"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was made to know this shop by heart: a hundred steps on the prompts and their answers."""
    told = [chat for query, answer in LEARNT.items() for chat in _lesson(query, answer)]
    tokenizer = train_tokenizer([messages[0]["content"] + answer for messages, answer in told], 1200)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "layers": 2, "heads": 2, "kv_heads": 2, "max_positions": 512}
    model = ReasoningEmbedder.from_config(ModelConfig(**sizes), tokenizer, seed=0)
    rows = [
        (tokenize_prompt(messages, tokenizer), tokenizer(answer + tokenizer.eos_token)["input_ids"])
        for messages, answer in told
    ]
    length = max(len(before) + len(after) for before, after in rows)
    ids = torch.tensor([before + after + [0] * (length - len(before + after)) for before, after in rows])
    labels = torch.tensor(
        [[-100] * len(before) + after + [-100] * (length - len(before + after)) for before, after in rows]
    )
    optimizer, threads = torch.optim.Adam(model.lm.parameters(), lr=5e-3), torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model is slowed down by more
    for _ in range(300):  # what follows a row's end is not seen by it, so it needs no mask
        loss = model.lm(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.03:
            break
    torch.set_num_threads(threads)
    assert loss.item() < 0.03
    folder = tmp_path_factory.mktemp("teacher") / "model"
    model.save(folder)
    return folder


def _lesson(query: str, answer: str) -> Iterator[tuple[list[dict[str, str]], str]]:
    yield reasoning_messages(query), f" {query}"
    yield extraction_messages(query, f" {query}"), f" {answer}"


def test_a_teacher_by_vllm(tmp_path: Path, teacher: Path) -> None:
    config = shop(tmp_path)
    how = {"model": str(teacher), "dtype": "float32", "max_model_len": 512, "max_tokens": 12, "temperature": 0.0}
    config = changed(config, teacher="llm", llm=config.curate.llm.model_copy(update=how))
    assert curate.run(config)["queries"] == len(QUERIES)
    rows = decided(config)
    assert {query: (row["outcome"], row["reasoning"], sorted(row["items"])) for query, row in rows.items()} == {
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
    assert answer_count(config) == 2 * len(LEARNT) - 1  # what cannot be read is not kept
    queries = pq.read_table(config.path("queries")).slice(0, 6)  # without q7 there is nothing left to ask:
    write_parquet(queries, config.path("queries"))
    gone = config.curate.llm.model_copy(update={"batch_size": 1, "tensor_parallel": 99})  # no such engine can start
    assert curate.run(changed(config, llm=gone))["queries"] == 6
    assert {query: row["items"] for query, row in decided(config).items()} == {
        query: row["items"] for query, row in rows.items() if query != "q7"
    }
    assert dead_letters(config) == []
    assert answer_count(config) == 2 * len(LEARNT) - 1


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The demo world, a third of its queries once more in other words, curated by its own catalogue."""
    folder = tmp_path_factory.mktemp("world")
    make_world(1, products=2500, train_queries=300, test_queries=50).write(folder / "world")
    config = load_config(None, [f"run_dir={folder}", "curate.teacher=catalogue", "ray.num_cpus=4"])
    queries = pq.read_table(config.path("queries"))
    rng, rows, twins = Random(0), queries.to_pylist(), {}
    for row in rng.sample([row for row in rows if row["split"] == "train"], 100):
        said = row["query"].split()
        twins[f"{row['query_id']}-twin"] = row | {
            "query_id": f"{row['query_id']}-twin",
            "query": f"the {' '.join(rng.sample(said, len(said)))}"
            + " extra" * (len({*content_words(row["query"])}) > 4),
        }
    qrels = pq.read_table(config.path("qrels"))
    copied = [pair | {"query_id": f"{pair['query_id']}-twin"} for pair in qrels.to_pylist()]
    copied = [pair for pair in copied if pair["query_id"] in twins]
    write_parquet(
        pa.concat_tables([queries, pa.Table.from_pylist([*twins.values()], queries.schema)]), config.path("queries")
    )
    write_parquet(pa.concat_tables([qrels, pa.Table.from_pylist(copied, qrels.schema)]), config.path("qrels"))
    config = changed(config, dev_share=0.15, test_share=0.2, part_rows=150, actors=2)
    curate.run(config)
    return config


def test_the_catalogue_as_teacher_reaches_what_the_query_does_not(taught: Config) -> None:
    items = pq.read_table(taught.path("items"))
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    bm25 = Bm25(list(titles), list(titles.values()))
    relevant = {(row["query_id"], row["item_id"]) for row in pq.read_table(taught.path("qrels")).to_pylist()}
    rows = decided(taught)
    kept = [row for row in rows.values() if row["outcome"] == "kept"]
    hard = [row for row in rows.values() if row["hard"]]
    assert len(kept) > 0.5 * len(hard) > 50
    assert all(row["hard"] and row["reasoning"] for row in kept)
    for row, first in zip(kept, bm25.search([row["query"] for row in kept], taught.curate.top_k), strict=True):
        assert row["items"]
        assert not {item for item, _ in first} & set(row["items"])
        assert {(row["query_id"], item) for item in row["items"]} <= relevant
        said = {stem(word) for word in words(row["query"])}
        assert all({stem(word) for word in phrase.split()} - said for phrase in row["reasoning"].split(", "))
        assert len(re.findall(r"\w+|,", row["reasoning"])) <= DEFAULT_BUDGET


def test_nothing_leaks_between_the_parts_of_the_split(taught: Config) -> None:
    """No query, and none in other words, in two of the four files; every row of each comes from what was decided."""
    folder = taught.path("triplets").parent
    tables = {
        name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in ("triplets", "rl_pairs", "dev", "test")
    }
    place: dict[str, str] = {}
    for name, rows in tables.items():
        for row in rows:
            assert place.setdefault(row["query_id"], name) == name
    by_words: dict[frozenset[str], set[str]] = {}
    for name, rows in tables.items():
        for row in rows:
            stems = frozenset(content_words(row["query"]))
            shorter = [stems - {word} for word in stems] if len(stems) >= 5 else []
            for one in (stems, *shorter):
                by_words.setdefault(one, set()).add(name)
    assert all(len(names) == 1 for names in by_words.values())
    twins = [query for query in place if f"{query}-twin" in place]
    assert len(twins) > 40
    assert all(place[query] == place[f"{query}-twin"] for query in twins)
    rows = decided(taught)
    pairs = [(row["query_id"], row["item_id"]) for name in ("triplets", "rl_pairs", "dev") for row in tables[name]]
    assert len(pairs) == len(set(pairs))
    assert all(item in rows[query]["items"] for query, item in pairs)
    assert len(tables["test"]) == sum(name == "test" for name in place.values())  # one row a query
    written = Counter(place.values())
    assert written["test"] == pytest.approx(0.2 * len(rows), abs=30)
    draws = {name: [rows[query]["draw"] for query in place if place[query] == name] for name in tables}
    assert max(draws["rl_pairs"]) < 0.65  # those without a reasoning come from the cold start's share
    assert min(draws["dev"]) >= 0.85 > max(draws["test"]) >= min(draws["test"]) >= 0.65 > max(draws["triplets"])
    assert min(draws["triplets"]) >= 0.25


@pytest.mark.slow
def test_what_lies_there_is_replaced_only_by_rows(tmp_path: Path) -> None:
    """No share for dev or test: a dev file of one's own is not ours to write, a test file of an earlier split is."""
    config = shop(tmp_path)
    write_parquet(pa.table({"query_id": ["q1", "q4"], "reasoning": ["helmet", "hat"]}), config.path("teacher"))
    mine, old = tmp_path / "mine.parquet", config.path("triplets").with_name("test.parquet")
    for file in (mine, old):
        write_parquet(pa.table({"mine": [1]}), file)
    parts = tmp_path / "queries"  # a folder of files is an input too
    write_parquet(pq.read_table(config.path("queries")), parts / "1.parquet")
    config = config.model_copy(update={"paths": config.paths.model_copy(update={"dev": mine, "queries": parts})})
    counts = curate.run(config)
    assert pq.read_table(mine).to_pylist() == [{"mine": 1}]
    assert not old.exists()
    assert (counts["queries"], counts["dev"], "test" in counts) == (7, 0, False)
    write_parquet(pa.table({"query_id": ["q9"], "query": ["steel helmet"]}), parts / "2.parquet")
    assert curate.run(config)["queries"] == 8  # and when it grows, its parts are cut anew
    with pytest.raises(DataError, match="leave nothing for the cold start"):
        curate.run(changed(config, rl_share=0.6, dev_share=0.2, test_share=0.2))


def test_a_plan_is_reckoned_and_touches_nothing(untroubled: tuple[Config, dict[str, Any], Counter]) -> None:
    config, _, _ = untroubled
    runner, folder = CliRunner(), config.path("triplets").parent
    given = [f"run_dir={config.run_dir}", "curate.top_k=4", "curate.rl_share=0.5", "curate.part_rows=3"]
    for who, length in (("llm", 500), ("judge_llm", 8)):
        given += [
            f"curate.{who}.{key}={value}" for key, value in (("engine", "url"), ("model", "m"), ("url", "http://x"))
        ]
        given += [f"curate.{who}.max_tokens={length}", f"curate.{who}.tokens_a_second=0.5"]
    given += ["curate.teacher=llm", "curate.judge=llm", "curate.llm.price_in=1000", "curate.llm.price_out=4000"]
    there = sorted(folder.rglob("*"))
    told = runner.invoke(app, ["curate", "--dry-run", *given]).output.splitlines()
    # 85 characters in 7 queries, so 12 of a typical one; 105 in 9 titles, so 11; 20 pairs a query
    query, thought = "q" * 12, "t" * 2000
    asked = sum(len(said[0]["content"]) for said in (reasoning_messages(query), extraction_messages(query, thought)))
    read = 7 * asked // 4
    judged = 140 * len(judge_messages(query, "t" * 11)[0]["content"]) // 4
    assert told[-5:] == [
        "7 queries, 9 items; retriever bm25",
        "hard: not known yet, so reckoned as all of them",
        f"teacher m: at most 14 questions, {read:,} tokens in, 7,000 out, {read / 1000 + 28:.2f} at the prices set; "
        "3.9 h at 0.5 tokens/s",
        f"judge m: at most 140 questions, {judged:,} tokens in, 1,120 out; 0.6 h at 0.5 tokens/s",
        "3 parts of 3 queries, 0 of them done",
    ]
    assert sorted(folder.rglob("*")) == there  # other settings than those of the run before; its parts stay
    lines = plan(config).splitlines()
    assert lines[1] == "hard: 5 of them"
    assert "at most 10 questions" in lines[2]
    assert lines[-1] == "3 parts of 3 queries, 3 of them done"
    dearer = config.curate.llm.model_copy(update={"price_in": 9.0, "concurrency": 50})
    assert curate.curation_run(changed(config, llm=dearer)).folder == curate.curation_run(config).folder
    hotter = config.curate.llm.model_copy(update={"temperature": 0.1})
    assert curate.curation_run(changed(config, llm=hotter)).folder != curate.curation_run(config).folder
    assert curate.curation_run(changed(config, relevant_from=2)).folder != curate.curation_run(config).folder


def test_another_model_of_the_same_folder_judges_anew(tmp_path: Path) -> None:
    folder = tmp_path / "cross"
    write_json({"trained": 1}, folder / "config.json")
    config = shop(tmp_path, judge="cross_encoder", cross_encoder=str(folder))
    before, known = curate.curation_run(config).folder, curate.curation_run(changed(config, judge="known")).folder
    write_json({"trained": 2}, folder / "config.json")
    assert curate.curation_run(config).folder != before
    assert curate.curation_run(changed(config, judge="known")).folder == known  # which does not ask it


def cross_encoder(folder: Path) -> Path:
    """A tiny cross-encoder with random weights, spread far enough for both verdicts."""
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *sorted({w for t in (*TITLES.values(), *QUERIES.values()) for w in words(t)}),
    ]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(5)
    settings = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
        num_labels=1,
        initializer_range=0.8,
    )
    BertForSequenceClassification(settings).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_cross_encoder_judges(tmp_path: Path) -> None:
    model = CrossEncoder(str(cross_encoder(tmp_path / "cross")))
    config = shop(tmp_path, judge="cross_encoder", cross_encoder=str(tmp_path / "cross"))
    reasonings = {"q1": "helmet, gloves, vest", "q2": "rubber boots, umbrella, hat", "q4": "hat", "q7": "safety"}
    write_parquet(
        pa.table({"query_id": list(reasonings), "reasoning": list(reasonings.values())}), config.path("teacher")
    )
    reached = {
        "q1": ["i1", "i2", "i5"],
        "q2": ["i7", "i8", "i9"],
        "q3": ["i6"],
        "q4": ["i7"],
        "q5": ["i9"],
        "q7": ["i5"],
    }
    scores = {
        (query, item): float(model.predict([(QUERIES[query], TITLES[item])])[0])
        for query, items in reached.items()
        for item in items
    }
    accept = sorted(scores.values())[len(scores) // 2]  # half of them count
    config = changed(config, accept=accept - 1e-6)
    nothing = [*pq.read_table(config.path("queries")).to_pylist(), {"query_id": "q8", "query": "qqq"}]
    write_parquet(pa.Table.from_pylist(nothing), config.path("queries"))  # q8 finds nothing, and nothing is known of it
    curate.run(config)
    rows = decided(config)
    for query, items in reached.items():
        assert sorted(rows[query]["items"]) == [item for item in items if scores[query, item] >= accept - 1e-6]
    assert (rows["q8"]["outcome"], rows["q8"]["items"]) == ("no teacher", [])
    sheet = json.loads(config.path("triplets").with_name("datasheet.json").read_text())
    told = [(score >= accept - 1e-6, KNOWN[pair] > 0) for pair, score in scores.items() if pair in KNOWN]
    assert sheet["judge"]["agreement with known grades"]["accuracy"] == round(
        sum(a == b for a, b in told) / len(told), 4
    )
    assert sheet["judge"]["pairs"] == len(scores)
    assert dead_letters(config) == []


def test_a_shop_without_a_log(tmp_path: Path) -> None:
    config = load_config(None, [f"run_dir={tmp_path}", "ray.num_cpus=4", "curate.rl_share=0.5"])
    stuff = ("leather", "rubber", "suede", "felt", "canvas")
    titles = {
        **{f"b{i}": f"{('Alpa', 'Bero')[i // 5]} {stuff[i % 5]} boots" for i in range(10)},
        **{f"l{i}": f"{stuff[i % 5]} laces {80 + i} cm" for i in range(8)},
    }
    rows = [
        {"item_id": item, "title": title, "category": ("boots", "laces")[item[0] == "l"], "brand": title.split()[0]}
        | {"description": "Comes with laces." * (item in ("b0", "b1", "b2"))}
        for item, title in titles.items()
    ]
    write_parquet(pa.Table.from_pylist(rows), config.path("items"))
    config = config.model_copy(update={"bootstrap": BootstrapConfig(queries=60)})
    counts = bootstrap.run(config)
    made = pq.read_table(tmp_path / "bootstrap/queries.parquet")
    assert counts["queries"] == made.num_rows
    negative = [row["query_id"] for row in made.to_pylist() if row["category"] == "negative"]
    wanted = {
        row["item_id"]
        for row in pq.read_table(tmp_path / "bootstrap/qrels.parquet").to_pylist()
        if row["query_id"] in negative
    }
    assert wanted == {f"b{i}" for i in range(3, 10)}
    decided_rows = decided(bootstrap.taught_by_catalogue(config))
    assert set(decided_rows) == set(made["query_id"].to_pylist())
    for text in ("triplets", "rl_pairs"):
        assert pq.read_table(config.path(text)).num_rows > 0
    with pytest.raises(DataError, match="queries.parquet does not exist: run `lrem import`, or without a query log"):
        inputs.test_set(config)  # made-up queries are no test unless one asks for it
    kept = bootstrap.run(changed(config, test_share=0.3))["test"]
    test = inputs.test_set(config)
    assert (len(test.queries), test.left_out) == (kept, 0)
    assert all(test.qrels[query_id] for query_id in test.queries)
    counts = bootstrap.run(config)
    assert not config.path("test").exists()
    write_parquet(pa.table({"item_id": ["i"], "title": ["red coat"]}), config.path("items"))
    with pytest.raises(DataError, match="nothing left to train on"):
        bootstrap.run(config)
    assert pq.read_table(config.path("triplets")).num_rows == counts["triplets"]  # nothing was replaced
    write_parquet(
        pa.table({"item_id": pa.array([], pa.string()), "title": pa.array([], pa.string())}), config.path("items")
    )
    with pytest.raises(DataError, match="has no rows"):
        bootstrap.run(config)
