"""Words of queries and titles: what counts as a word, a literal, a content word. Knows English endings; no model."""

import re
from itertools import pairwise

UNSPACED = re.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
# Words that say nothing about a product; negations and units are not among them.
SILENT = """a an and are as at be by for from has have i in into is it its me my of on or our s so some something t that
the their them this to up we what when where which who with you your"""
STOP = frozenset(SILENT.split())
NEGATIONS = frozenset(("without", "no", "not", "non", "free", "except", "excluding", "minus", "sans", "never"))


def words(text: str) -> list[str]:
    """Lower-case words in order; of text without spaces between words, see `spaced`.

    >>> words("Men's T-shirt, 1/2 inch")
    ['men', 's', 't', 'shirt', '1', '2', 'inch']
    """
    return re.findall(r"\w+", spaced(text).lower())


def spaced(text: str) -> str:
    """Chinese, Japanese and Thai runs as overlapping pairs of characters, the usual stand-in for words.

    >>> spaced("红色大衣 coat")
    ' 红色 色大 大衣  coat'
    """
    return UNSPACED.sub(lambda run: f" {' '.join(map(''.join, pairwise(run[0]))) or run[0]} ", text)


def literals(text: str) -> set[str]:
    """Words with a digit, as model numbers and sizes: nobody may invent one. Unspaced scripts part them.

    >>> sorted(literals("Sony WH-1000XM4 headphones 2020"))
    ['2020', 'wh-1000xm4']
    >>> literals("iphone15手机壳")
    {'iphone15'}
    """
    return {word for word in re.findall(r"[\w-]+", UNSPACED.sub(" ", text).lower()) if any(c.isdigit() for c in word)}


def stem(word: str) -> str:
    """A word without its plural ending; nothing cleverer, so that two products stay two.

    >>> [stem(word) for word in ("belts", "dresses", "batteries", "glass", "shoes", "bus")]
    ['belt', 'dress', 'battery', 'glass', 'shoe', 'bus']
    """
    if len(word) <= 3 or word.endswith(("ss", "us", "is")) or not word.endswith("s"):
        return word
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    if word.endswith(("sses", "xes", "ches", "shes")):
        return word[:-2]
    return word[:-1]


def content(text: str) -> list[str]:
    """Stems of the words that say something, in order.

    >>> content("Belts for the men without a buckle")
    ['belt', 'men', 'without', 'buckle']
    """
    return [stem(word) for word in words(text) if word not in STOP]
