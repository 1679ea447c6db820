"""A catalogue as the rules of bootstrap read it: normalized titles, texts, kinds of product, brands and colours."""

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import pyarrow as pa

from lrem.config import BootstrapConfig
from lrem.curation import contrast
from lrem.curation.rules import normalize_brand
from lrem.data.words import content_words, normalize, stem, words

MIN_NOUN_TITLES = 8  # titles with a word from which it counts as a noun
MIN_ITEMS = 3  # items that a kind of product, a feature or a use needs


class CatalogueFeatures(NamedTuple):
    """The columns of a catalogue, one entry per item, and what is derived from them. An item's row is its index."""

    titles: list[str]
    texts: list[str]  # title and descriptions, lower case
    stems: list[frozenset[str]]  # of the words in these texts
    nouns: frozenset[str]  # stems in many titles: titles consist of things, descriptions of sentences
    kinds: list[str | None]  # from the column of kinds, or else derived from the titles
    brands: list[str]
    colours: list[set[str]]
    kind_names: dict[str, str]  # kind → what a shopper calls it
    kind_rows: dict[str, list[int]]  # kind → rows of its items, for kinds with at least MIN_ITEMS items


def extract_features(items: pa.Table, config: BootstrapConfig) -> CatalogueFeatures:
    """Read a catalogue; a missing column counts as empty."""
    titles = items["title"].to_pylist()
    kinds = [_kind(value) for value in _column(items, config.type_column)]
    descriptions = [_column(items, name) for name in config.text_columns]
    texts = [
        normalize(" . ".join(str(part) for part in parts if part)) for parts in zip(titles, *descriptions, strict=True)
    ]
    catalogue = contrast.phrase_frequencies(titles)
    if not any(kinds):
        kinds = [_commonest_pair(title, catalogue) for title in titles]
    kind_rows: dict[str, list[int]] = defaultdict(list)
    for row, kind in enumerate(kinds):
        if kind:
            kind_rows[kind].append(row)
    kind_rows = {kind: rows for kind, rows in kind_rows.items() if len(rows) >= MIN_ITEMS}
    title_frequency = Counter(word for title in titles for word in set(content_words(title)))
    return CatalogueFeatures(
        titles,
        texts,
        [frozenset(map(stem, words(text))) for text in texts],
        frozenset(word for word, n in title_frequency.items() if n >= MIN_NOUN_TITLES),
        kinds,
        [normalize_brand(str(value or "")) for value in _column(items, config.brand_column)],
        [set(words(str(value or ""))) for value in _column(items, config.colour_column)],
        {kind: _kind_name(kind, [titles[i] for i in rows], catalogue) for kind, rows in kind_rows.items()},
        kind_rows,
    )


def _kind_name(kind: str, titles: list[str], catalogue: contrast.PhraseFrequencies) -> str:
    """Return the phrase that distinguishes the titles of a kind of product, or else the kind itself."""
    keywords = contrast.keywords("", titles, [], catalogue, 1)
    return keywords[0] if keywords else " ".join(words(kind))


def _commonest_pair(title: str, catalogue: contrast.PhraseFrequencies) -> str | None:
    """Return the pair of words that most titles share, as the kind of an item in a catalogue without such a column."""
    pairs = [phrase for phrase in contrast.phrases(title) if " " in phrase and phrase in catalogue.counts]
    return max(pairs, key=lambda phrase: (catalogue.counts[phrase], phrase), default=None)


def _kind(value: Any) -> str | None:
    """Return a kind as text: a category path joined to one, or None for an empty cell."""
    if isinstance(value, list):
        return " > ".join(map(str, value)) or None
    return str(value) if value else None


def _column(items: pa.Table, name: str | None) -> list[Any]:
    return items[name].to_pylist() if name in items.column_names else [None] * items.num_rows
