"""A small shop, and a sentence-transformers model that knows the synonyms among its words."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

# Synonyms share a vector; the vectors of different sets are orthogonal.
SYNONYMS = [
    *({"bike", "bicycle", "cycling"}, {"helmet"}, {"gloves", "mittens"}, {"bell"}, {"soup"}, {"tin", "canned"}),
    *({"poster"}, {"vest"}, {"steel"}, {"leather"}, {"safe", "helmet-like"}, {"ride"}, {"cold"}, {"hands"}),
]
TITLES = {
    "i1": "steel helmet",
    "i2": "leather gloves",
    "i3": "bike poster",
    "i4": "bicycle bell",
    "i5": "vest",
    "i6": "tin soup",
}


def save_tiny_encoder(folder: Path) -> Path:
    """Write a model that embeds a text as the mean of its words' vectors; returns `folder`."""
    words = sorted((word, axis) for axis, synonyms in enumerate(SYNONYMS) for word in synonyms)
    vocabulary = {"[UNK]": 0} | {word: i for i, (word, _) in enumerate(words, start=1)}
    weights = np.zeros((len(vocabulary), len(SYNONYMS)), np.float32)
    for word, axis in words:
        weights[vocabulary[word], axis] = 1
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(str(folder))
    return folder
