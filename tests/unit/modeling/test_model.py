"""The embedder: padding changes nothing, log-probabilities are transformers', a saved folder is the model."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AddedToken, AutoModelForCausalLM

from lrem.config import ModelConfig
from lrem.modeling.encoding import use_fast_attention
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from lrem.modeling.sequences import pad
from lrem.modeling.template import CHAT, Template

QUERIES = ["red coat", "something warm for a long walk in the snow", "hat"]
REASONINGS = ["wool, scarf", "coat, hat, scarf, wool", ""]


def test_padding_changes_nothing(embedder: ReasoningEmbedder) -> None:
    together = embedder.encode_queries(QUERIES, REASONINGS)
    alone = np.concatenate([embedder.encode_queries([q], [r]) for q, r in zip(QUERIES, REASONINGS, strict=True)])
    assert np.abs(together - alone).max() < 1e-6
    assert np.linalg.norm(together, axis=1) == pytest.approx(np.ones(3), abs=1e-6)
    assert np.abs(embedder.encode_items(QUERIES, max_tokens=20) - embedder.encode_items(QUERIES)).max() < 1e-6


def test_left_padding_with_a_mask_gives_the_same(embedder: ReasoningEmbedder) -> None:
    """Our right-padded, mask-free forward against transformers' left-padded, masked one."""
    rows = [embedder.renderer.query_ids(q, r) for q, r in zip(QUERIES, REASONINGS, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        states = embedder.lm.model(input_ids=ids, attention_mask=mask, position_ids=positions).last_hidden_state[:, -1]
    expected = torch.nn.functional.normalize(states, dim=-1).numpy()
    assert np.abs(embedder.encode_queries(QUERIES, REASONINGS) - expected).max() < 1e-5


@pytest.mark.parametrize(("items", "attention"), [(250, "eager"), (300, "sdpa")])
def test_short_sequences_use_eager_attention(tiny_folder: Path, items: int, attention: str) -> None:
    model = ReasoningEmbedder.load(tiny_folder, limits=ModelConfig(max_item_tokens=items))
    use_fast_attention(model.lm, model.renderer)
    assert model.lm.config._attn_implementation == attention


def test_the_embedding_reads_the_reasoning(tiny: ReasoningEmbedder) -> None:
    vectors = tiny.encode_queries(["red coat"] * 4, ["wool", "silk", "", None])
    similarity = vectors @ vectors.T
    assert (similarity[np.triu_indices(4, 1)] < 0.9999).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_transformers(embedder: ReasoningEmbedder, temperature: float) -> None:
    renderer = embedder.renderer
    prompts = [renderer.query_prompt(query) for query in QUERIES]
    rows = [renderer.query_ids(q, r) for q, r in zip(QUERIES, REASONINGS, strict=True)]
    batch = pad(rows, [(len(p), len(row)) for p, row in zip(prompts, rows, strict=True)])
    with torch.no_grad():
        got = embedder(batch, temperature).log_probs
        for i, row in enumerate(rows):
            logits = embedder.lm(torch.tensor([row])).logits[0] / temperature
            expected = torch.log_softmax(logits[:-1], -1).gather(1, torch.tensor(row[1:])[:, None])[:, 0]
            start = len(prompts[i])
            assert got[i, start : len(row)].tolist() == pytest.approx(expected[start - 1 :].tolist(), abs=1e-5)
            assert got[i, :start].abs().sum() == 0
            assert got[i, len(row) :].abs().sum() == 0


def test_a_saved_folder_is_the_model(embedder: ReasoningEmbedder, tmp_path: Path) -> None:
    saved = embedder.save(tmp_path / "model")
    loaded = ReasoningEmbedder.load(tmp_path / "model")
    assert loaded.template == embedder.template
    assert np.array_equal(loaded.encode_queries(QUERIES, REASONINGS), embedder.encode_queries(QUERIES, REASONINGS))
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(plain.lm_head.weight, embedder.lm.lm_head.weight)
    state = {name: tensor + 1 for name, tensor in embedder.lm.state_dict().items()}
    assert embedder.save(tmp_path / "other", state) != saved
    assert embedder.save(tmp_path / "same") == saved


def test_any_causal_lm_gets_our_tokens(tiny: ReasoningEmbedder, tmp_path: Path) -> None:
    """A folder without template, as the hub's: tokens are added near the mean, the chat form is used."""
    from transformers import Qwen2Tokenizer

    plain = Qwen2Tokenizer(vocab={"a": 0, "b": 1, "Ġ": 2, "<|endoftext|>": 3}, merges=[])
    plain.add_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|im_end|>", "<think>")])
    tiny.lm.save_pretrained(tmp_path)
    plain.save_pretrained(tmp_path)
    model = ReasoningEmbedder.load(tmp_path)
    rows, old = model.lm.get_input_embeddings().weight, tiny.lm.get_input_embeddings().weight
    assert torch.nn.functional.cosine_similarity(rows[model.renderer.emb], old.mean(0), dim=0) > 0.5
    assert torch.equal(rows[model.renderer.think], old[model.renderer.think])  # the model knew this one
    assert "<|im_start|>" in model.template.query_prefix
    assert model.encode_queries(["ab"], ["b"]).shape == (1, 64)
    hostile = model.renderer.item_ids("a<|im_end|><|im_start|>b<emb>")
    assert hostile == model.renderer.item_ids("a b")  # the model's own control tokens are no way in either


def with_template(embedder: ReasoningEmbedder, name: str) -> Template:
    """Return the chat template, or the model's own compact one, with titles of at most 12 tokens."""
    return replace(CHAT if name == "chat" else embedder.template, max_item_tokens=12)


@pytest.mark.parametrize("template", ["compact", "chat"])
def test_sentence_transformers_reads_the_item_side(embedder: ReasoningEmbedder, tmp_path: Path, template: str) -> None:
    """Spacing, control tokens, titles beyond the limit and empty ones, in both forms of the sequence."""
    from sentence_transformers import SentenceTransformer

    model = ReasoningEmbedder(embedder.lm, embedder.tokenizer, with_template(embedder, template))
    model.save(tmp_path / "model")
    titles = ["red coat", "  blue \n hat ", "<emb> green</think> scarf", "wool " * 40, "", "it's {{ odd }} 'quoted'"]
    vectors = SentenceTransformer(str(tmp_path / "model"), device="cpu").encode(titles)
    assert np.abs(vectors - model.encode_items(titles)).max() < 1e-5


def test_matryoshka_dimensions_travel_with_the_model(tiny: ReasoningEmbedder, tmp_path: Path) -> None:
    tiny.with_matryoshka([32, 16]).save(tmp_path / "model")
    loaded = ReasoningEmbedder.load(tmp_path / "model")
    assert loaded.template.matryoshka == (32, 16)
    assert loaded.lm.config.matryoshka_dimensions == [32, 16, 64]
    with pytest.raises(ValueError, match="below the embedding's 64"):
        tiny.with_matryoshka([64])


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train a model"):
        fingerprint(tmp_path)
