"""New control tokens have rows of their own, the same at every load, tied or not; and the texts of the template."""

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from lrem.config import ModelConfig
from lrem.modeling.control_tokens import add_control_tokens
from lrem.modeling.model import ReasoningEmbedder, fingerprint
from lrem.modeling.template import CLOSE, EMB, THINK


def untied(source: Path) -> LlamaForCausalLM:
    """Return the model of `source` with a head of its own."""
    lm = AutoModelForCausalLM.from_pretrained(source, tie_word_embeddings=False)
    torch.manual_seed(1)
    lm.lm_head.weight = torch.nn.Parameter(torch.randn(lm.lm_head.weight.shape))
    return lm


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_every_new_token_has_rows_of_its_own(llama_source: Path, tied: bool) -> None:
    lm = AutoModelForCausalLM.from_pretrained(llama_source) if tied else untied(llama_source)
    tokenizer = AutoTokenizer.from_pretrained(llama_source)
    old = [lm.get_input_embeddings().weight.clone(), lm.get_output_embeddings().weight.clone()]
    add_control_tokens(lm, tokenizer)
    ids = tokenizer.convert_tokens_to_ids([THINK, CLOSE, EMB])
    assert (lm.get_input_embeddings().weight is lm.get_output_embeddings().weight) == tied
    for module, before in zip((lm.get_input_embeddings(), lm.get_output_embeddings()), old, strict=True):
        rows = module.weight.detach()
        assert torch.equal(rows[: len(before)], before)
        distances = torch.cdist(rows[ids], rows)
        distances[range(3), ids] = torch.inf
        assert distances.min() > 0.05 * before.std(0).norm()  # no copy of another row
        assert ((rows[ids] - before.mean(0)).norm(dim=1) < 0.2 * before.std(0).norm()).all()


def test_greedy_decoding_tells_new_tokens_apart(tiny_llama: ReasoningEmbedder) -> None:
    """Equal rows would give equal logits after any state."""
    renderer, states = tiny_llama.renderer, torch.randn(9, 64, generator=torch.manual_seed(0))
    logits = tiny_llama.lm.lm_head(states)
    for one, other in itertools.combinations((renderer.think, renderer.close, renderer.emb), 2):
        assert (logits[:, one] != logits[:, other]).all()


def test_a_load_is_repeatable(llama_source: Path, tmp_path: Path) -> None:
    """Or an unfinished run would refuse to resume: its base model would have another fingerprint."""
    for name in ("one", "other"):
        torch.manual_seed(len(name))
        ReasoningEmbedder.load(llama_source).save(tmp_path / name)
    assert fingerprint(tmp_path / "one") == fingerprint(tmp_path / "other")


def test_the_template_is_a_setting(llama_source: Path, tmp_path: Path) -> None:
    """compact: at most five tokens a text, and the BOS that this tokenizer begins with; a folder keeps its own."""
    chat = ReasoningEmbedder.load(llama_source)
    assert chat.template.query_prefix.startswith("<s><|im_start|>")
    compact = ModelConfig(source=str(llama_source), template="compact", budget=7)
    model = ReasoningEmbedder.load(llama_source, limits=compact)
    assert (model.template.query_prefix, model.template.item_prefix) == ("<s>Query:", "<s>Item:")
    assert model.renderer.query_ids("red coat", "")[0] == model.tokenizer.bos_token_id
    model.save(tmp_path / "model")
    assert ReasoningEmbedder.load(tmp_path / "model").template == model.template
    changed = ReasoningEmbedder.load(tmp_path / "model", limits=ModelConfig(source="any", template="chat")).template
    assert (changed.query_prefix, changed.budget) == (chat.template.query_prefix, 7)


def test_compact_keeps_the_markers_of_a_model_that_began_with_them(tiny_folder: Path) -> None:
    limits = ModelConfig(source=str(tiny_folder), template="compact")
    assert ReasoningEmbedder.load(tiny_folder, limits=limits).template.query_prefix == "<query>"
    with pytest.raises(ValueError, match="template=chat needs a source"):
        ModelConfig(template="chat")
