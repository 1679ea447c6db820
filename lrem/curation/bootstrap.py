"""Queries and judgements out of a catalogue alone, for a shop that has no query log: five kinds of need.

    easy         words of a title, in their order           items whose titles hold them all
    attribute    a colour and a kind of product             items of the kind whose colour is that
    negative     a kind of product without a feature        items of the kind whose text lacks the feature
    question     what a text says a product is for          items whose texts say so
    alternative  a kind of product of another brand         items of the kind, of other brands

What a query wants follows from the columns and texts by a rule, so it is as right as they are. Wordings are English.
Knows items; reasonings come from curation's teacher, which needs no model either.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

import pyarrow as pa

from lrem.config import BootstrapConfig
from lrem.curation import contrast
from lrem.curation.rules import normalize_brand
from lrem.data.known_positives import query_identity
from lrem.data.schema import QRELS
from lrem.data.words import NEGATIONS, STOP_WORDS, content_words, stem, words
from lrem.errors import DataError

COMMON = 8  # titles that a word must stand in to count as a thing
LEAST = 3  # items that a kind of product, a feature or a use needs
FEATURE = re.compile(r"\bwith (?:an? |the |its )?((?:[a-z]+ )?[a-z]{3,})")
USE = re.compile(
    r"\b(?:perfect|great|ideal|suitable|used|designed|made|good|best) for (?:your |the |an? )?((?:[a-z]+ )?[a-z]{4,})"
)
VAGUE = frozenset(
    (
        "all",
        "any",
        "both",
        "each",
        "every",
        "everyone",
        "great",
        "high",
        "many",
        "more",
        "most",
        "only",
        "other",
        "ease",
    )
)
WITHOUT = ("{kind} without {feature}", "{kind} no {feature}", "{kind} not {feature}", "{feature} free {kind}")
FOR = ("what do i need for {use}", "something for {use}", "{use}", "gift for {use}", "best things for {use}")
INSTEAD = ("{brand} {kind} alternative", "cheaper than {brand} {kind}", "{kind} like {brand}", "{kind} not {brand}")

Made = tuple[str, list[int]]  # a query, and the places of the items that it wants


class Shop(NamedTuple):
    """A catalogue as the rules read it; every list has an entry for each item."""

    titles: list[str]
    texts: list[str]  # title and descriptions, in lower case
    stems: list[frozenset[str]]  # of the words of these texts
    nouns: frozenset[str]  # stems that COMMON titles have: titles are made of things, texts of sentences
    kinds: list[str | None]  # the value of the kind's column
    brands: list[str]
    colours: list[set[str]]
    names: dict[str, str]  # a kind → what a shopper calls it
    members: dict[str, list[int]]  # a kind → places of its items


def bootstrap(items: pa.Table, config: BootstrapConfig, seed: int) -> tuple[pa.Table, pa.Table]:
    """Queries (query_id, query, category) and qrels of grade 1; the same seed gives the same ones.

    Args:
        items: item_id, title, and the columns that `config` names, as far as they are there.

    Raises:
        DataError: the catalogue gives no query at all.
    """
    shop, rng = read_shop(items, config), Random(f"{seed} bootstrap")
    makers: dict[str, Callable[[Shop, Random], Iterator[Made]]] = {
        "easy": easy,
        "attribute": attribute,
        "negative": negative,
        "question": question,
        "alternative": alternative,
    }
    asked: dict[int, tuple[str, str, list[int]]] = {}  # identity → kind of need, query, places
    total = sum(config.shares.values())
    for need, share in config.shares.items():
        found: dict[int, tuple[str, str, list[int]]] = {}
        for query, places in makers[need](shop, rng):
            key = query_identity(query)
            if key not in asked and 0 < len(places) <= config.most_relevant:
                found.setdefault(key, (need, query, places))
        wanted = round(config.queries * share / total)
        kept = sorted(found) if len(found) <= wanted else rng.sample(sorted(found), wanted)
        asked |= {key: found[key] for key in kept}
    if not asked:
        raise DataError("the catalogue gives no query: its titles are too few or too short, and no column helps")
    return _tables(asked, items["item_id"].to_pylist())


def read_shop(items: pa.Table, config: BootstrapConfig) -> Shop:
    """The catalogue as the rules need it; a column that is not there counts as empty."""
    titles = items["title"].to_pylist()
    kinds = [_last(value) for value in _column(items, config.type_column)]
    more = [_column(items, name) for name in config.text_columns]
    texts = [" . ".join(str(part) for part in parts if part).lower() for parts in zip(titles, *more, strict=True)]
    catalogue = contrast.phrase_frequencies(titles)
    if not any(kinds):
        kinds = [_head(title, catalogue) for title in titles]
    members: dict[str, list[int]] = defaultdict(list)
    for place, kind in enumerate(kinds):
        if kind:
            members[kind].append(place)
    members = {kind: places for kind, places in members.items() if len(places) >= LEAST}
    seen = Counter(word for title in titles for word in set(content_words(title)))
    return Shop(
        titles,
        texts,
        [frozenset(map(stem, words(text))) for text in texts],
        frozenset(word for word, n in seen.items() if n >= COMMON),
        kinds,
        [normalize_brand(str(value or "")) for value in _column(items, config.brand_column)],
        [set(words(str(value or ""))) for value in _column(items, config.colour_column)],
        {kind: _called(kind, [titles[i] for i in places], catalogue) for kind, places in members.items()},
        members,
    )


def easy(shop: Shop, rng: Random) -> Iterator[Made]:
    """Two to five words of a title, in their order."""
    holding: dict[str, set[int]] = defaultdict(set)
    stems = [set(content_words(title)) for title in shop.titles]
    for place, found in enumerate(stems):
        for word in found:
            holding[word].add(place)
    for title in shop.titles:
        said = [word for word in words(title) if word not in STOP_WORDS and len(word) > 1][:16]
        for _ in range(4):
            count = min(len(said), rng.randint(2, 5))
            chosen = [said[i] for i in sorted(rng.sample(range(len(said)), count))]
            sets = [holding[stem(word)] for word in chosen]
            yield " ".join(chosen), sorted(sets[0].intersection(*sets[1:])) if sets else []


def attribute(shop: Shop, rng: Random) -> Iterator[Made]:
    """A colour and a kind."""
    for kind, places in shop.members.items():
        seen = Counter(colour for place in places for colour in shop.colours[place])
        for colour in sorted(seen):
            if colour.isalpha() and colour not in STOP_WORDS and len(colour) > 2:
                wanted = [place for place in places if colour in shop.colours[place]]
                yield f"{colour} {shop.names[kind]}", wanted


def negative(shop: Shop, rng: Random) -> Iterator[Made]:
    """A kind without something that some, not all, of its items are said to come with."""
    for kind, places in shop.members.items():
        said = [{_thing(found, shop.nouns) for found in FEATURE.findall(shop.texts[place])} for place in places]
        counts = Counter(feature for found in said for feature in found if feature)
        for feature in sorted(feature for feature, n in counts.items() if n >= 2):
            if set(feature.split()) & set(words(shop.names[kind])):
                continue
            parts = set(map(stem, feature.split()))
            lacking = [place for place in places if not parts <= shop.stems[place]]
            if LEAST <= len(lacking) <= len(places) - 2:
                for wording in rng.sample(WITHOUT, 2):
                    yield wording.format(kind=shop.names[kind], feature=feature), lacking


def question(shop: Shop, rng: Random) -> Iterator[Made]:
    """What texts say that a product is for."""
    fit: dict[str, list[int]] = defaultdict(list)
    for place, text in enumerate(shop.texts):
        for use in {_thing(found, shop.nouns) for found in USE.findall(text)}:
            if use:
                fit[use].append(place)
    for use in sorted(fit):
        if len(fit[use]) >= LEAST:
            for wording in rng.sample(FOR, 3):
                yield wording.format(use=use), fit[use]


def alternative(shop: Shop, rng: Random) -> Iterator[Made]:
    """A kind of product, of another brand than the one that is named."""
    for kind, places in shop.members.items():
        for brand in sorted({shop.brands[place] for place in places} - {""}):
            others = [place for place in places if shop.brands[place] not in ("", brand)]  # "": may be this brand's
            if len(others) >= LEAST:
                yield rng.choice(INSTEAD).format(kind=shop.names[kind], brand=brand), others


def _thing(found: str, nouns: frozenset[str]) -> str:
    """A feature or a use as the text says it, less what is vague or no thing; empty if nothing is left.

    >>> nouns = frozenset(("strap", "adjustable", "wheel"))
    >>> [_thing(found, nouns) for found in ("adjustable straps", "all wheels", "wheels and", "ease")]
    ['adjustable straps', '', 'wheels', '']
    """
    said = found.split()
    while said and (said[-1] in STOP_WORDS | VAGUE | NEGATIONS or stem(said[-1]) not in nouns):
        said.pop()
    doing = len(said) > 1 and said[0].endswith("ing")  # to keep food warm; camping alone is a use
    return "" if not said or doing or said[0] in VAGUE | STOP_WORDS | NEGATIONS else " ".join(said)


def _called(kind: str, titles: list[str], catalogue: contrast.PhraseFrequencies) -> str:
    """What titles call a kind of product: the phrase that sets them apart, else the kind itself."""
    found = contrast.keywords("", titles, [], catalogue, 1)
    return found[0] if found else " ".join(words(kind))


def _head(title: str, catalogue: contrast.PhraseFrequencies) -> str | None:
    """A kind for an item of a catalogue without such a column: the pair of its words that most titles share."""
    pairs = [phrase for phrase in contrast.phrases(title) if " " in phrase and phrase in catalogue.counts]
    return max(pairs, key=lambda phrase: (catalogue.counts[phrase], phrase), default=None)


def _last(value: Any) -> str | None:
    if isinstance(value, list):
        return " > ".join(map(str, value)) or None
    return str(value) if value else None


def _column(items: pa.Table, name: str | None) -> list[Any]:
    return items[name].to_pylist() if name in items.column_names else [None] * items.num_rows


def _tables(asked: dict[int, tuple[str, str, list[int]]], ids: list[str]) -> tuple[pa.Table, pa.Table]:
    rows = [(f"b{key:016x}", *made) for key, made in sorted(asked.items())]
    queries = {
        "query_id": [query_id for query_id, *_ in rows],
        "query": [query for _, _, query, _ in rows],
        "category": [need for _, need, _, _ in rows],
    }
    pairs = [
        {"query_id": query_id, "item_id": ids[place], "grade": 1} for query_id, _, _, places in rows for place in places
    ]
    return pa.table(queries), pa.Table.from_pylist(pairs, QRELS)
