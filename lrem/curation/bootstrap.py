"""Queries and judgements from a catalogue alone, for a shop without a query log: five kinds of need.

easy         words of a title, in their order           items whose titles contain them all
attribute    a colour and a kind of product             items of the kind in that colour
negative     a kind of product without a feature        items of the kind whose text lacks the feature
question     what a text says a product is for          items whose texts say so
alternative  a kind of product of another brand         items of the kind, of other brands

Which items are relevant follows from columns and texts by a rule, so judgements are as correct as these are. The
wordings are English. The reasonings come from curation's catalogue teacher, which needs no model either.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple

import pyarrow as pa

from lrem.config import BootstrapConfig
from lrem.curation.catalogue_features import MIN_ITEMS, CatalogueFeatures, extract_features
from lrem.data.known_positives import query_identity
from lrem.data.schema import QRELS
from lrem.data.words import NEGATIONS, STOP_WORDS, content_words, stem, words
from lrem.errors import DataError

FEATURE = re.compile(r"\bwith (?:an? |the |its )?((?:[a-z]+ )?[a-z]{3,})")
USE = re.compile(
    r"\b(?:perfect|great|ideal|suitable|used|designed|made|good|best) for (?:your |the |an? )?((?:[a-z]+ )?[a-z]{4,})"
)
_VAGUE_LIST = "all any both each every everyone great high many more most only other ease"
VAGUE_WORDS = frozenset(_VAGUE_LIST.split())
NEGATIVE_TEMPLATES = (
    "{kind} without {feature}",
    "{kind} no {feature}",
    "{kind} not {feature}",
    "{feature} free {kind}",
)
QUESTION_TEMPLATES = (
    "what do i need for {use}",
    "something for {use}",
    "{use}",
    "gift for {use}",
    "best things for {use}",
)
ALTERNATIVE_TEMPLATES = (
    "{brand} {kind} alternative",
    "cheaper than {brand} {kind}",
    "{kind} like {brand}",
    "{kind} not {brand}",
)


class BootstrappedQuery(NamedTuple):
    """A query, and the rows of its relevant items in the catalogue."""

    text: str
    relevant_rows: list[int]


QueryGenerator = Callable[[CatalogueFeatures, Random], Iterator[BootstrappedQuery]]


def bootstrap_queries(items: pa.Table, config: BootstrapConfig, seed: int) -> tuple[pa.Table, pa.Table]:
    """Return queries (query_id, query, category) and qrels of grade 1, reproducible from the seed.

    Args:
        items: item_id, title, and those of the columns in `config` that exist.
        config: shares of the kinds of need, and names of columns.
        seed: seed of every random choice.

    Raises:
        DataError: the catalogue yields no query at all.
    """
    features, rng = extract_features(items, config), Random(f"{seed} bootstrap")
    selected: dict[int, tuple[str, BootstrappedQuery]] = {}  # identity of the query → kind of need, query
    total = sum(config.shares.values())
    for need, share in config.shares.items():
        candidates: dict[int, tuple[str, BootstrappedQuery]] = {}
        for query in GENERATORS[need](features, rng):
            key = query_identity(query.text)
            if key not in selected and 0 < len(query.relevant_rows) <= config.most_relevant:
                candidates.setdefault(key, (need, query))
        target = round(config.queries * share / total)
        kept = sorted(candidates) if len(candidates) <= target else rng.sample(sorted(candidates), target)
        selected |= {key: candidates[key] for key in kept}
    if not selected:
        raise DataError(
            "the catalogue yields no query: add items, longer titles, or the columns of bootstrap.type_column, "
            "brand_column and colour_column"
        )
    return _tables(selected, items["item_id"].to_pylist())


def easy_queries(features: CatalogueFeatures, rng: Random) -> Iterator[BootstrappedQuery]:
    """Two to five words of a title, in their order."""
    rows_with: dict[str, set[int]] = defaultdict(set)
    for row, title in enumerate(features.titles):
        for word in set(content_words(title)):
            rows_with[word].add(row)
    for title in features.titles:
        title_words = [word for word in words(title) if word not in STOP_WORDS and len(word) > 1][:16]
        for _ in range(4):
            count = min(len(title_words), rng.randint(2, 5))
            chosen = [title_words[i] for i in sorted(rng.sample(range(len(title_words)), count))]
            sets = [rows_with[stem(word)] for word in chosen]
            yield BootstrappedQuery(" ".join(chosen), sorted(sets[0].intersection(*sets[1:])) if sets else [])


def attribute_queries(features: CatalogueFeatures, rng: Random) -> Iterator[BootstrappedQuery]:
    """Generate queries for a colour and a product type."""
    for kind, rows in features.kind_rows.items():
        colours = {colour for row in rows for colour in features.colours[row]}
        for colour in sorted(colours):
            if colour.isalpha() and colour not in STOP_WORDS and len(colour) > 2:
                relevant = [row for row in rows if colour in features.colours[row]]
                yield BootstrappedQuery(f"{colour} {features.kind_names[kind]}", relevant)


def negative_queries(features: CatalogueFeatures, rng: Random) -> Iterator[BootstrappedQuery]:
    """Generate queries for a product type without a feature that only some of its items mention."""
    for kind, rows in features.kind_rows.items():
        name = features.kind_names[kind]
        mentions = [{_noun_phrase(m, features.nouns) for m in FEATURE.findall(features.texts[row])} for row in rows]
        counts = Counter(feature for item_features in mentions for feature in item_features if feature)
        for feature in sorted(feature for feature, n in counts.items() if n >= 2):
            if set(feature.split()) & set(words(name)):
                continue
            feature_stems = set(map(stem, feature.split()))
            lacking = [row for row in rows if not feature_stems <= features.stems[row]]
            if MIN_ITEMS <= len(lacking) <= len(rows) - 2:
                for template in rng.sample(NEGATIVE_TEMPLATES, 2):
                    yield BootstrappedQuery(template.format(kind=name, feature=feature), lacking)


def question_queries(features: CatalogueFeatures, rng: Random) -> Iterator[BootstrappedQuery]:
    """Generate questions about a use that product texts mention."""
    rows_for: dict[str, list[int]] = defaultdict(list)
    for row, text in enumerate(features.texts):
        for use in {_noun_phrase(match, features.nouns) for match in USE.findall(text)}:
            if use:
                rows_for[use].append(row)
    for use in sorted(rows_for):
        if len(rows_for[use]) >= MIN_ITEMS:
            for template in rng.sample(QUESTION_TEMPLATES, 3):
                yield BootstrappedQuery(template.format(use=use), rows_for[use])


def alternative_queries(features: CatalogueFeatures, rng: Random) -> Iterator[BootstrappedQuery]:
    """Generate queries for a product type of another brand than the one in the query."""
    for kind, rows in features.kind_rows.items():
        for brand in sorted({features.brands[row] for row in rows} - {""}):
            others = [row for row in rows if features.brands[row] not in ("", brand)]  # "" may be this brand
            if len(others) >= MIN_ITEMS:
                template = rng.choice(ALTERNATIVE_TEMPLATES)
                yield BootstrappedQuery(template.format(kind=features.kind_names[kind], brand=brand), others)


GENERATORS: dict[str, QueryGenerator] = {
    "easy": easy_queries,
    "attribute": attribute_queries,
    "negative": negative_queries,
    "question": question_queries,
    "alternative": alternative_queries,
}


def _noun_phrase(match: str, nouns: frozenset[str]) -> str:
    """Return a feature or a use without trailing words that are not nouns, or an empty string if the rest is neither.

    >>> nouns = frozenset(("strap", "adjustable", "wheel"))
    >>> [_noun_phrase(match, nouns) for match in ("adjustable straps", "all wheels", "wheels and", "ease")]
    ['adjustable straps', '', 'wheels', '']
    """
    phrase = match.split()
    while phrase and (phrase[-1] in STOP_WORDS | VAGUE_WORDS | NEGATIONS or stem(phrase[-1]) not in nouns):
        phrase.pop()
    activity = len(phrase) > 1 and phrase[0].endswith("ing")  # "keeping food" is not a use; "camping" alone is one
    return "" if not phrase or activity or phrase[0] in VAGUE_WORDS | STOP_WORDS | NEGATIONS else " ".join(phrase)


def _tables(selected: dict[int, tuple[str, BootstrappedQuery]], item_ids: list[str]) -> tuple[pa.Table, pa.Table]:
    rows = [(f"b{key:016x}", need, query) for key, (need, query) in sorted(selected.items())]
    queries = {
        "query_id": [query_id for query_id, _, _ in rows],
        "query": [query.text for _, _, query in rows],
        "category": [need for _, need, _ in rows],
    }
    pairs = [
        {"query_id": query_id, "item_id": item_ids[row], "grade": 1}
        for query_id, _, query in rows
        for row in query.relevant_rows
    ]
    return pa.table(queries), pa.Table.from_pylist(pairs, QRELS)
