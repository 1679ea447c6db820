"""What a shard of the index holds, in bytes: in memory by parts, more while it is rebuilt, and on disk.

Reckons with the layouts of Faiss, NumPy, CPython and SQLite, from sizes alone. Measures nothing, and knows neither
machines nor queries. docs/capacity.md compares it with measurements.
"""

import math
import re
from functools import lru_cache
from typing import NamedTuple

from lrem.errors import DataError
from lrem.index.ann import SAMPLE, training_need
from lrem.index.building import BATCH

FAMILY = re.compile(r"Flat|HNSW(?P<links>\d+)|IVF(?P<lists>\d*),(?P<code>Flat|SQ8|PQ(?P<parts>\d*))")
PAGE = 4096  # of SQLite
ID_FILL = 0.69  # of the pages of SQLite's index of ids: ids that come in any order leave them so full, ln 2
HOLE = 2**25  # glibc gives larger blocks back to the system at once (DEFAULT_MMAP_THRESHOLD_MAX)
BLOCK = 2**24  # distances that Faiss has in hand at once: 4096 vectors by 1024 centroids, 4 bytes each


class Item(NamedTuple):
    """An item's sizes: numbers of its vector, bytes of its payload as JSON and of its id, and what filters can ask.

    Of the payload's fields `texts` hold words that no two items share, as titles, `text` bytes of ASCII in each;
    `fields` hold a number, or words that many items share.
    """

    dim: int
    payload: int = 200
    texts: int = 1
    text: int = 80
    fields: int = 4
    item_id: int = 12


class Structure(NamedTuple):
    """A Faiss structure: `links` (M) of a graph, `lists` of an inverted file, 0 without; `parts` of a PQ code."""

    links: int
    lists: int
    code: str
    parts: int

    @property
    def kind(self) -> str:
        """What constants are measured for: Flat, HNSW, or IVF with its code."""
        return "HNSW" if self.links else f"IVF,{self.code}" if self.lists else "Flat"

    @property
    def factory(self) -> str:
        """As Faiss and `index.factory` have it."""
        code = f"{self.code}{self.parts or ''}"
        return f"HNSW{self.links}" if self.links else f"IVF{self.lists},{code}" if self.lists else "Flat"


def structure(family: str, count: int, dim: int) -> Structure:
    """The structure for `count` vectors. An IVF without a number of lists, a PQ without one of parts, get the usual.

    >>> structure("IVF,PQ", 5_000_000, 256).factory, structure("HNSW32", 10, 256).factory
    ('IVF8192,PQ128', 'HNSW32')

    Raises:
        DataError: the family is not modelled, or its numbers do not fit.
    """
    found = FAMILY.fullmatch(family)
    if found is None:
        raise DataError(f"structure '{family}': Flat, HNSW32, 'IVF,Flat', 'IVF,SQ8' and 'IVF,PQ' are reckoned")
    links, lists, code = int(found["links"] or 0), found["lists"], found["code"] or "Flat"
    if found["links"] is not None and links < 2:
        raise DataError(f"structure '{family}': a graph needs 2 links at least, HNSW32 is usual")
    parts = int(found["parts"] or usual_parts(dim)) if code.startswith("PQ") else 0
    if parts and dim % parts:
        raise DataError(f"structure '{family}': {dim} numbers cannot be cut into {parts} parts, use 'IVF,PQ'")
    return Structure(links, usual_lists(count) if lists == "" else int(lists or 0), "PQ" if parts else code, parts)


def usual_lists(count: int) -> int:
    """As lrem.index.ann.choose has it: the power of two nearest to 4 √count."""
    return int(2 ** round(math.log2(4 * math.sqrt(count))))


@lru_cache
def usual_parts(dim: int) -> int:
    """As lrem.index.ann.choose has it: two numbers a part, if that divides them."""
    return max(part for part in range(1, dim // 2 + 1) if dim % part == 0)


class Held(NamedTuple):
    """Bytes of one replica of a shard, its process's own aside.

    `vectors`: whole, or their codes. `links`: the graph; or ids, centroids and codebooks. `rows`: which item stands
    where. `payload`: the columns that filters read. `holes`: freed since it was opened, and kept by the allocator.
    """

    vectors: float
    links: float
    rows: float
    payload: float
    holes: float

    @property
    def total(self) -> float:
        """Bytes."""
        return sum(self)


def held(what: Structure, count: int, item: Item) -> Held:
    """What a shard of `count` items holds once it is opened.

    vectors = count × code; links of a graph = count × (4 (2 M + M / (M − 1)) + 12), which is 2 M neighbours below, M at
    each level above, that one vector in M^level has, the level and where the neighbours begin.

    >>> sizes = held(structure("HNSW32", 10**6, 64), 10**6, Item(64))
    >>> round(sizes.vectors / 10**6), round(sizes.links / 10**6), round(sizes.rows / 10**6)
    (256, 272, 9)
    """
    payload, holes = columns(count, item)
    holes += min(2 * min(count, BATCH) * 4 * item.dim, 2 * HOLE)  # two batches of vectors, read at the opening
    return Held(count * code_bytes(what, item.dim), _links(what, count, item.dim), 9.0 * count, payload, holes)


def code_bytes(what: Structure, dim: int) -> int:
    """Of one vector: 4 a number, 1 with SQ8, 1 a part with PQ."""
    return {"Flat": 4 * dim, "SQ8": dim, "PQ": what.parts}[what.code]


def _links(what: Structure, count: int, dim: int) -> float:
    if what.links:
        return count * _link_bytes(what.links)
    if not what.lists:
        return 0.0
    trained = {"Flat": 0, "SQ8": 8 * dim, "PQ": 4 * 256 * dim}[what.code]
    return 8.0 * count + 4 * what.lists * dim + trained


def _link_bytes(links: int) -> float:
    return 4 * (2 * links + links / (links - 1)) + 12 if links else 0.0


def columns(count: int, item: Item) -> tuple[float, float]:
    """Bytes of the payload's columns, and of the holes that their growth leaves.

    A row number (8) and a value (8; a code of 4 for words) stand in arrays that double; a text of its own costs its
    string (49 bytes more than its length), the int of its code and its place in a dict. An array that doubles leaves a
    copy of half its size behind.
    """
    arrays = [12.0, 0.0] * item.texts + [16.0] * item.fields
    growing = [grown(count) * width for width in arrays] + [float(table(count))] * item.texts
    strings = item.texts * count * (_rounded(49 + item.text) + 32)
    return sum(growing) + strings, sum(min(size / 2, HOLE) for size in growing)


def grown(count: int) -> int:
    """Places of an array that was filled by BATCH and doubled when full.

    >>> grown(5000), grown(20_000), grown(1_000_000)
    (5000, 20000, 1280000)
    """
    return count if count <= BATCH else int(BATCH * 2 ** math.ceil(math.log2(count / BATCH)))


def table(entries: int) -> int:
    """Bytes of a dict with strings as keys (CPython 3.11): slots are a power of two and two thirds are used at most.

    >>> import sys
    >>> sys.getsizeof({str(i): i for i in range(10_000)}) - table(10_000) < 64
    True
    """
    slots = 8
    while slots * 2 // 3 < entries:
        slots *= 2
    index = 1 if slots <= 2**7 else 2 if slots <= 2**15 else 4 if slots <= 2**31 else 8
    return slots * index + 16 * (slots * 2 // 3) + 64


def _rounded(size: int) -> int:
    return -(-size // 16) * 16


def rebuilt(what: Structure, count: int, item: Item) -> float:
    """Bytes more while a shard is rebuilt, or while a new generation starts beside the old one.

    The most of: all of it again, and a half-sized copy that each inverted list left behind when it doubled; the moment
    when vectors or graph last doubled, and stood there old and new; both with the batches that are read meanwhile; what
    training takes, its sample twice, with PQ three times, and a block of distances.

    >>> whole = Structure(0, 0, "Flat", 0)
    >>> rebuilt(whole, 10**6, Item(64)) > held(whole, 10**6, Item(64)).total
    True
    """
    before = grown(count) // 2  # items when the arrays last doubled
    then = held(what, min(count, before + BATCH), item).total
    largest = 0 if what.lists else max(code_bytes(what, item.dim), _link_bytes(what.links))
    batches = 3.0 * min(count, BATCH) * (4 * item.dim + item.payload + 300)
    need = trained_on(what, item.dim)
    sample = 4.0 * item.dim * min(count, max(SAMPLE, need))
    training = (3 if what.code == "PQ" else 2) * sample + BLOCK if need else 0.0
    lists = count * (code_bytes(what, item.dim) + 8) / 2 if what.lists else 0.0
    return max(held(what, count, item).total + lists + batches, then + before * largest + batches, training)


def trained_on(what: Structure, dim: int) -> int:
    """How many vectors a structure is trained on at least; with fewer a collection's search is exact."""
    return training_need(dim, what.factory) if what.lists else 0


def store(count: int, item: Item) -> float:
    """Bytes of items.sqlite: the rows, each with its payload and its whole vector, and the index of ids.

    What a page does not hold goes to pages of its own, as SQLite's file format has it
    (https://www.sqlite.org/fileformat2.html, "Cell payload overflow pages").

    >>> round(store(1_000_000, Item(64, payload=96, item_id=10)) / 1_000_000)
    437
    """
    vector = 4 * item.dim
    header = 2 + _varint(13 + 2 * item.item_id) + _varint(13 + 2 * item.payload) + _varint(12 + 2 * vector)
    record = header + item.item_id + item.payload + vector
    local, spilled = record, 0
    if record > PAGE - 35:
        least = (PAGE - 12) * 32 // 255 - 23
        fits = least + (record - least) % (PAGE - 4)
        local = fits if fits <= PAGE - 35 else least
        spilled = -(-(record - local) // (PAGE - 4))
    row = max(4, (count.bit_length() + 6) // 7)
    cell = _varint(record) + row + local + (4 if spilled else 0)
    rows = PAGE / ((PAGE - 8) // (cell + 2)) + PAGE * spilled
    number = (count.bit_length() + 7) // 8
    ids = (3 + 1 + item.item_id + number + 2) / ID_FILL
    return count * (rows + ids)


def _varint(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def saved(what: Structure, count: int, item: Item) -> float:
    """Bytes of the search structure on disk: index.faiss and rows.npy."""
    return count * code_bytes(what, item.dim) + _links(what, count, item.dim) + 8.0 * count
