"""A tiny pretrained Llama: grouped heads, a tied head, and a tokenizer of its own that begins every text with BOS."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lrem.modeling.gguf import SENTENCE

STEPS = 60


def llama_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer of 320 tokens without any token of ours."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>"
    )


def tiny_llama_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a Llama of 0.1 M parameters that has learnt one English sentence by heart."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    lm = LlamaForCausalLM(config)
    ids = torch.tensor([tokenizer.encode(SENTENCE)])
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-2)
    for _ in range(STEPS):
        lm(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return lm.eval()


def save_tiny_llama(folder: Path, texts: list[str]) -> Path:
    """Write the model as a plain Hugging Face folder, without a template of ours; return the folder."""
    tokenizer = llama_tokenizer([*texts, SENTENCE])
    tiny_llama_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
