"""Text as it is compared, and its words: all words, words with digits, content words. English plural endings only."""

import unicodedata
from itertools import pairwise

import regex

WORD = regex.compile(r"[\p{L}\p{N}_][\w\p{M}]*")  # a mark, such as a vowel sign, belongs to its word
LITERAL = regex.compile(r"[\p{L}\p{N}_-][\w\p{M}-]*")
FORMAT_CHARACTERS = regex.compile(
    r"[\p{Cf}\p{Variation_Selector}]+"
)  # zero-width characters, soft hyphens, emoji styles
HYPHENS = str.maketrans("\u2010\u2011", "--")
APART = regex.compile("[™℠]|(?=[¼-¾⅐-⅟↉])")  # NFKC would write Kohlertm and 421/2 for Kohler™ and 42½
# Thai, kana and Han: scripts without spaces between words
UNSPACED = regex.compile("[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]+")
# Words that carry no product information; negations and units are not among them.
_STOP_LIST = """\
a an and are as at be by for from has have i in into is it its me my of on or our s so some something t that
the their them this to up we what when where which who with you your"""
STOP_WORDS = frozenset(_STOP_LIST.split())
NEGATIONS = frozenset(("without", "no", "not", "non", "free", "except", "excluding", "minus", "sans", "never"))


def normalize(text: str) -> str:
    """Return a text as it is compared: NFKC with case folded, without format characters. Spacing is kept.

    >>> normalize("Cafe\\u0301 ＬＥＤ İstanbul 42½") == normalize("CAF\\u00c9 led istanbul 42 1⁄2")
    True
    """
    if text.isascii():
        return text.lower()
    text = unicodedata.normalize("NFKC", APART.sub(" ", FORMAT_CHARACTERS.sub("", text)))
    folded = text.translate(HYPHENS).casefold().replace("i\u0307", "i")  # İ folds to an i with a second dot
    return unicodedata.normalize("NFKC", folded)


def words(text: str) -> list[str]:
    """Return the words of the normalized text; for scripts without spaces, character bigrams (`space_bigrams`).

    >>> words("Men's T-shirt, 1/2 inch")
    ['men', 's', 't', 'shirt', '1', '2', 'inch']
    """
    return list(WORD.findall(space_bigrams(normalize(text))))


def space_bigrams(text: str) -> str:
    """Replace each Chinese, Japanese or Thai run by its overlapping character bigrams, the usual substitute for words.

    >>> space_bigrams("红色大衣 coat")
    ' 红色 色大 大衣  coat'
    """
    return UNSPACED.sub(lambda run: f" {' '.join(map(''.join, pairwise(run[0]))) or run[0]} ", text)


def literals(text: str) -> set[str]:
    """Return the words with a digit, such as model numbers and sizes, which a model must not invent.

    Scripts without spaces separate them.

    >>> sorted(literals("Sony WH-1000XM4 headphones 2020"))
    ['2020', 'wh-1000xm4']
    >>> literals("iphone15手机壳")
    {'iphone15'}
    """
    return {word for word in LITERAL.findall(UNSPACED.sub(" ", normalize(text))) if any(c.isdigit() for c in word)}


def stem(word: str) -> str:
    """Return a word without its plural ending, and nothing more, so that two products stay distinct.

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


def content_words(text: str) -> list[str]:
    """Return the stems of all words but stop words, in order.

    >>> content_words("Belts for the men without a buckle")
    ['belt', 'men', 'without', 'buckle']
    """
    return [stem(word) for word in words(text) if word not in STOP_WORDS]
