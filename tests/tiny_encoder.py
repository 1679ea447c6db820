"""A small shop, and a model of sentence-transformers that knows which of its words mean the same."""

from pathlib import Path

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

# Words of one set mean the same: they share a vector, and the sets' vectors are orthogonal.
MEANINGS = [
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


def save_meanings(folder: Path) -> Path:
    """Write the model, whose text vector is the mean of its words' vectors; returns `folder`."""
    words = sorted((word, axis) for axis, same in enumerate(MEANINGS) for word in same)
    vocabulary = {"[UNK]": 0} | {word: i for i, (word, _) in enumerate(words, start=1)}
    weights = np.zeros((len(vocabulary), len(MEANINGS)), np.float32)
    for word, axis in words:
        weights[vocabulary[word], axis] = 1
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(str(folder))
    return folder
