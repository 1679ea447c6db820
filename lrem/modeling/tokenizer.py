"""A tokenizer trained on the catalogue itself, for models that start from a configuration.

Byte-level BPE: frequent words become one token, and any other text can still be encoded.
"""

import json
from collections.abc import Iterable

from tokenizers import pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from lrem.modeling.template import CLOSE, EMB, ITEM, QUERY, THINK

PAD, EOS = "<pad>", "<eos>"


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train on `texts`; return a tokenizer of at most `vocab_size` tokens, the special ones first.

    >>> tok = train_tokenizer(["red wool coat", "red coat"] * 9, 300)
    >>> tok.decode(tok.encode("red coat")).strip()
    'red coat'
    """
    seed = Qwen2Tokenizer()  # transformers will rebuild its pre-tokenizer around our vocabulary
    special = [PAD, EOS, THINK, CLOSE, EMB, QUERY, ITEM]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    seed.backend_tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(seed.backend_tokenizer.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(merge) for merge in model["merges"]],
        unk_token=PAD,
        pad_token=PAD,
        eos_token=EOS,
        extra_special_tokens=special[2:],
    )
