"""A model folder in mteb: a task scores exactly as the model's own embeddings do."""

import sys
from pathlib import Path
from typing import Any

import ir_measures
import mteb
import numpy as np
import pytest
import torch
from datasets import Dataset
from ir_measures import nDCG
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.retrieval_dataset_loaders import RetrievalSplitData
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from lrem.config import ModelConfig, RolloutConfig
from lrem.errors import DataError
from lrem.evaluation.mteb_model import MtebModel
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from ray_apps.rollouts.engines import TransformersEngine

MATERIALS, KINDS = ("wool", "linen", "silk"), ("coat", "shirt", "scarf", "hat")
# documents with and without a title; mteb joins title and text with a space
CORPUS = [
    {"id": f"{colour}-{material}-{kind}", "title": title, "text": text}
    for colour in ("red", "blue", "green", "black")
    for material in MATERIALS
    for kind in KINDS
    for title, text in [(colour, f"{material} {kind}") if kind == "hat" else ("", f"{colour} {material} {kind}")]
]
DOCUMENTS = [f"{row['title']} {row['text']}".strip() for row in CORPUS]
QUERIES = ["hat", "something red and warm", "blue linen", "a scarf for a green coat in winter", "silk", "black wool"]
QRELS: dict[str, dict[str, int]] = {f"q{i}": {} for i in range(len(QUERIES))}
for i, query in enumerate(QUERIES):  # any shared word makes a document relevant, a shared colour makes it more relevant
    for row, title in zip(CORPUS, DOCUMENTS, strict=True):
        words = title.split()
        if set(words) & set(query.split()):
            QRELS[f"q{i}"][row["id"]] = 2 if words[0] in query.split() else 1


class TinyShop(AbsTaskRetrieval):
    """An mteb retrieval task with data from this file."""

    metadata = TaskMetadata(
        name="TinyShop",
        description="Products by words of their titles.",
        reference=None,
        dataset={"path": "none", "revision": "1"},
        type="Retrieval",
        category="t2t",
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
    )

    def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
        rows = [{"id": f"q{i}", "text": query} for i, query in enumerate(QUERIES)]
        data = RetrievalSplitData(
            corpus=Dataset.from_list(CORPUS), queries=Dataset.from_list(rows), relevant_docs=QRELS, top_ranked=None
        )
        self.dataset, self.data_loaded = {"default": {"test": data}}, True


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forbid downloads. The hub's client has read the variable at import, so its constant is changed too."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with widely varied weights: its reasoning differs by query, and would differ with the padding."""
    model = ReasoningEmbedder.load(tiny_folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("mteb") / "lively"
    model.save(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> ReasoningEmbedder:
    """The model in that folder."""
    return ReasoningEmbedder.load(folder).eval()


@pytest.fixture(scope="module")
def greedy(folder: Path) -> list[str]:
    """Reasonings by another implementation: the engine that takes one prompt at a time."""
    engine = TransformersEngine(str(folder), RolloutConfig(dtype="float32"))
    return engine.reason(QUERIES, must_think=True)


def ndcg(model: ReasoningEmbedder, reasonings: list[str]) -> float:
    """Return nDCG@10 by ir-measures from the model's own embeddings."""
    scores = model.encode_queries(QUERIES, reasonings) @ model.encode_items(DOCUMENTS).T
    ids = [row["id"] for row in CORPUS]
    run = {f"q{i}": dict(zip(ids, map(float, row), strict=True)) for i, row in enumerate(scores)}
    return float(ir_measures.calc_aggregate([nDCG @ 10], QRELS, run)[nDCG @ 10])


def test_a_task_scores_as_the_models_own_embeddings_do(
    model: ReasoningEmbedder, folder: Path, greedy: list[str], tmp_path: Path
) -> None:
    cache = mteb.ResultCache(tmp_path)
    ndcgs = {}
    for reason, reasonings in (("never", [""] * len(QUERIES)), ("always", greedy)):
        adapter = MtebModel(folder, reason)
        [result] = mteb.evaluate(adapter, [TinyShop()], cache=cache, show_progress_bar=False).task_results
        [scores] = result.scores["test"]
        ndcgs[reason] = scores["ndcg_at_10"]
        assert ndcgs[reason] == pytest.approx(ndcg(model, reasonings), abs=1e-4)
        assert 0 < ndcgs[reason] < 1
        cached = cache.load_task_result("TinyShop", adapter.mteb_model_meta)
        assert cached.scores["test"][0]["ndcg_at_10"] == ndcgs[reason]
    assert ndcgs["never"] != ndcgs["always"]  # so neither result was served from the other's cache entry
    assert len(list(tmp_path.rglob("TinyShop.json"))) == 2


def test_batches_do_not_change_a_reasoning(model: ReasoningEmbedder, folder: Path, greedy: list[str]) -> None:
    """Prompts of many lengths get the same reasoning in a batch as alone."""
    assert all(greedy)
    batch = [{"text": QUERIES[:4]}, {"text": QUERIES[4:]}]
    always, never = MtebModel(folder), MtebModel(folder, "never")
    assert always.reasonings(QUERIES, 4) == always.reasonings(QUERIES, 1) == greedy
    assert never.reasonings(QUERIES) == [""] * len(QUERIES)
    with_reasonings = always.encode(batch, prompt_type=PromptType.query, batch_size=4)
    np.testing.assert_allclose(with_reasonings, model.encode_queries(QUERIES, greedy), atol=1e-6)
    without = never.encode(batch, prompt_type=PromptType.query)
    np.testing.assert_allclose(without, model.encode_queries(QUERIES, [""] * len(QUERIES)), atol=1e-6)
    assert np.abs(with_reasonings - without).max(1).min() > 1e-3
    items = model.encode_items(QUERIES)
    for prompt_type in (PromptType.document, None):
        np.testing.assert_allclose(always.encode(batch, prompt_type=prompt_type), items, atol=1e-6)
    np.testing.assert_allclose(always.similarity(without, items), without @ items.T, atol=1e-6)
    np.testing.assert_allclose(always.similarity_pairwise(3 * without, items), (without * items).sum(1), atol=1e-6)


def test_auto_reasons_if_an_empty_reasoning_is_unlikely(
    model: ReasoningEmbedder, folder: Path, greedy: list[str]
) -> None:
    prompts = [torch.tensor([model.renderer.thinking_prompt(query)]) for query in QUERIES]
    with torch.no_grad():
        chances = [model.lm(ids).logits[0, -1].softmax(-1)[model.renderer.close].item() for ids in prompts]
    middle = sum(sorted(chances)[2:4]) / 2
    expected = [text if chance < middle else "" for text, chance in zip(greedy, chances, strict=True)]
    assert expected.count("") == 3
    assert MtebModel(folder, "auto", think_below=middle).reasonings(QUERIES, 4) == expected


def test_metadata_distinguishes_models_and_settings(model: ReasoningEmbedder, folder: Path) -> None:
    adapter = MtebModel(folder, "auto", think_below=0.25, limits=ModelConfig(budget=3))
    meta = adapter.mteb_model_meta
    assert isinstance(adapter, mteb.EncoderProtocol)
    assert not isinstance(adapter, mteb.SearchProtocol)
    assert (meta.name, meta.revision) == ("lrem/lively", fingerprint(folder))
    assert (meta.embed_dim, meta.max_tokens) == (model.dimension, 96)
    assert (meta.similarity_fn_name.value, meta.framework) == ("cosine", ["PyTorch", "Transformers"])
    assert meta.n_parameters == sum(p.numel() for p in model.parameters())
    assert meta.experiment_kwargs == {"reason": "auto", "dtype": "float32", "think_below": 0.25, "budget": 3}


def test_limits_override_those_of_the_folder(model: ReasoningEmbedder, folder: Path) -> None:
    """A budget of one token gives the likeliest token that is not special (</think> is special)."""
    renderer, first = model.renderer, []
    for query in QUERIES:
        with torch.no_grad():
            logits = model.lm(torch.tensor([renderer.thinking_prompt(query)])).logits[0, -1]
        logits[sorted(renderer.special)] = -torch.inf
        first.append(renderer.thought_text([int(logits.argmax())]))
    assert MtebModel(folder, limits=ModelConfig(budget=1)).reasonings(QUERIES) == first


def test_a_model_trained_without_reasoning_embeds_without(model: ReasoningEmbedder, tmp_path: Path) -> None:
    model.save(tmp_path / "direct", record={"objective": "direct"})
    with pytest.raises(DataError, match="direct.*pass reason='never'"):
        MtebModel(tmp_path / "direct")
    embeddings = MtebModel(tmp_path / "direct", "never").encode([{"text": QUERIES}], prompt_type=PromptType.query)
    np.testing.assert_allclose(embeddings, model.encode_queries(QUERIES, [None] * len(QUERIES)), atol=1e-6)


def test_errors_name_what_is_missing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError, match=r"none has no \*.safetensors"):
        MtebModel(tmp_path / "none")
    with pytest.raises(DataError, match="reason='often'.* never, always, auto"):
        MtebModel(folder, "often")  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match="pip install mteb==2.26.24 -c constraints.txt"):
        MtebModel(folder)
