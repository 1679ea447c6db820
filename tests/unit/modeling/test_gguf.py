"""A GGUF file becomes the model that it was written from: weights, ties, BOS; and what is not a model is refused."""

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrem.config import ModelConfig
from lrem.errors import DataError
from lrem.modeling.gguf import convert_gguf, sentence_loss
from lrem.modeling.model import ReasoningEmbedder
from tests.unit.modeling.gguf_files import write_gguf

TEXTS = ["red wool coat", " it's 12 blue hats, ünïcode"]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_the_folder_is_the_model_that_was_written(llama_source: Path, tmp_path: Path, tied: bool) -> None:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(llama_source), AutoTokenizer.from_pretrained(llama_source)
    if not tied:
        lm.config.tie_word_embeddings = False
        lm.lm_head.weight = torch.nn.Parameter(lm.lm_head.weight.detach() * 1.1)
    folder = convert_gguf(write_gguf(tmp_path / "tiny.gguf", lm, tokenizer), tmp_path / "backbone")
    plain, read = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (plain.lm_head.weight is plain.model.embed_tokens.weight) == tied
    assert not hasattr(plain.config, "quantization_config")
    state = lm.state_dict()
    for name, tensor in plain.state_dict().items():  # eight bits: 1/254 of the largest of 32 values
        assert (tensor - state[name]).abs().max() < 0.005 * state[name].abs().max(), name
    for text in TEXTS:
        assert read.encode(text) == tokenizer.encode(text)
        assert read.encode(text)[0] == tokenizer.bos_token_id
    assert sentence_loss(plain, read) == pytest.approx(sentence_loss(lm, tokenizer), abs=0.05)


def test_a_tokenizer_that_adds_no_bos_keeps_to_it(llama_source: Path, tmp_path: Path) -> None:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(llama_source), AutoTokenizer.from_pretrained(llama_source)
    file = write_gguf(tmp_path / "tiny.gguf", lm, tokenizer, adds_bos=False)
    read = AutoTokenizer.from_pretrained(convert_gguf(file, tmp_path / "backbone", max_loss=20.0))
    assert read.encode("red coat") == tokenizer.encode("red coat")[1:]


def test_a_folder_is_reused_until_the_file_changes(llama_source: Path, tmp_path: Path) -> None:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(llama_source), AutoTokenizer.from_pretrained(llama_source)
    file = write_gguf(tmp_path / "tiny.gguf", lm, tokenizer)
    weights = convert_gguf(file, tmp_path / "backbone") / "model.safetensors"
    os.utime(weights, (1, 1))
    convert_gguf(file, tmp_path / "backbone")
    assert weights.stat().st_mtime == 1
    with torch.no_grad():
        lm.model.norm.weight.mul_(1.01)
    convert_gguf(write_gguf(file, lm, tokenizer), tmp_path / "backbone")
    assert weights.stat().st_mtime > 1


def test_a_model_that_knows_no_english_is_refused(llama_source: Path, tmp_path: Path) -> None:
    """As when tensors are read in a wrong order: the sentence's loss is that of a guess."""
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(llama_source), AutoTokenizer.from_pretrained(llama_source)
    torch.nn.init.normal_(lm.model.embed_tokens.weight)
    with pytest.raises(DataError, match="nats a token"):
        convert_gguf(write_gguf(tmp_path / "tiny.gguf", lm, tokenizer), tmp_path / "backbone")
    assert not (tmp_path / "backbone").exists()


def test_what_is_no_gguf_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "backbone")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(DataError, match="cannot be converted"):
        convert_gguf(tmp_path / "text.gguf", tmp_path / "backbone")


def test_a_converted_folder_is_a_source(llama_source: Path, tmp_path: Path) -> None:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(llama_source), AutoTokenizer.from_pretrained(llama_source)
    folder = convert_gguf(write_gguf(tmp_path / "tiny.gguf", lm, tokenizer), tmp_path / "backbone")
    model = ReasoningEmbedder.load(folder, limits=ModelConfig(source=str(folder), template="compact"))
    assert model.renderer.item_ids("coat")[0] == tokenizer.bos_token_id
    assert model.encode_queries(["red coat"], ["wool"]).shape == (1, 64)
