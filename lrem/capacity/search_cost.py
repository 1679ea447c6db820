"""What one search of a shard costs, in milliseconds of one core, and what share of the best items it finds.

A law of growth for each structure, with constants that benchmarks/capacity.py measures. Knows no shards, no traffic.
"""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from lrem.capacity.footprint import PAGE, Structure
from lrem.config import Section
from lrem.errors import DataError
from lrem.index.ann import EF_SEARCH, NPROBE, NPROBE_SHARE, RESCORED, RESCORED_FROM

MEASURED = Path(__file__).with_name("constants.json")  # what benchmarks/capacity.py --constants wrote
S = TypeVar("S", bound=Section)


class Misses(Section):
    """What a structure misses: `share` up to `count` vectors, and `slope` more for each ten times as many."""

    count: float = Field(gt=0)
    share: float = Field(ge=0, le=1)
    slope: float = Field(ge=0)


class Constants(Section):
    """Measured, on one core: ns of a number, a part or a hop; µs of a call, a hit, a candidate."""

    machine: str
    command: str
    process_bytes: float = Field(ge=0)  # of a shard's process without items
    call_us: float = Field(ge=0)
    hit_us: float = Field(ge=0)  # an item's id and payload
    scan_ns: float = Field(gt=0)  # a number of a whole vector, one after the other
    visits: tuple[float, float]  # vectors that HNSW32 looks at: a + b log2(count)
    hop_ns: float = Field(ge=0)  # one of them
    hop_number_ns: float = Field(ge=0)  # and a number of it
    code_ns: dict[str, float]  # a number (Flat, SQ8) or part (PQ) in an inverted list
    fetch_us: float = Field(ge=0)  # a candidate's vector, from the page cache
    fetch_number_ns: float = Field(ge=0)
    cold_us: float = Field(ge=0)  # a page from the disk
    misses: dict[str, Misses]  # by Structure.kind
    model: str  # what the rates below were measured with
    embedder_qps: float = Field(gt=0)
    reasoner_tokens: float | None = Field(None, gt=0)
    reasoner_cores: int = Field(1, ge=1)


class Asked(NamedTuple):
    """A query: numbers of its vector, how many items it wants, and the share of items.sqlite in the page cache."""

    dim: int
    k: int = 10
    store_cached: float = 1.0


def checked(kind: type[S], values: dict[str, Any], what: str = "") -> S:
    """`values` as settings of a kind. Raises DataError, which names each that cannot be."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = (
            f"{'.'.join(map(str, one['loc']))}: {one['msg']} (given: {one['input']!r:.60})" for one in error.errors()
        )
        raise DataError(what + "; ".join(told)) from error


def constants(file: Path | None = None) -> Constants:
    """Those that were measured for the project, or of a file that benchmarks/capacity.py wrote.

    Raises:
        DataError: the file is not there, or holds something else.
    """
    path = file or MEASURED
    try:
        return checked(Constants, json.loads(path.read_text(encoding="utf-8")), f"{path}: ")
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        again = "benchmarks/capacity.py --constants FILE writes one"
        raise DataError(f"{path} cannot be read as constants ({error}): {again}") from error


def search_ms(what: Structure, count: int, asked: Asked, known: Constants) -> float:
    """Milliseconds of one core for one query in a shard of `count` items.

    call + k × hit, and
      Flat  count × dim × scan: linear
      HNSW  visits × (hop + dim × number), visits = a + b log2(count), times ef / 128
      IVF   lists × dim × scan for the centroids (and 256 × dim for PQ's table), the share of the codes that is probed,
            and the candidates that are scored again from the store
    Of what the page cache does not hold, a hit waits for a page from the disk, a candidate for those of its vector.
    """
    cold = (1 - asked.store_cached) * known.cold_us
    us = known.call_us + asked.k * (known.hit_us + cold)
    if what.links:
        base, slope = known.visits
        visits = min(count, max(1.0, base + slope * math.log2(count)) * max(EF_SEARCH, 2 * asked.k) / EF_SEARCH)
        return (us + visits * (known.hop_ns + asked.dim * known.hop_number_ns) / 1000) / 1000
    if not what.lists:
        return (us + count * asked.dim * known.scan_ns / 1000) / 1000
    compared = what.lists + (256 if what.code == "PQ" else 0)
    codes = probed(what.lists) * count * (what.parts or asked.dim)
    us += (compared * asked.dim * known.scan_ns + codes * known.code_ns[what.code]) / 1000
    fetched = known.fetch_us + asked.dim * known.fetch_number_ns / 1000 + pages(asked.dim) * cold
    return (us + min(count, candidates(what, asked.k)) * fetched) / 1000


def probed(lists: int) -> float:
    """The share of the lists that a search looks into.

    >>> probed(4096), probed(4)
    (0.03125, 1.0)
    """
    return min(1.0, max(NPROBE / lists, NPROBE_SHARE))


def candidates(what: Structure, k: int) -> int:
    """How many are scored again from the store."""
    return max(RESCORED * k, RESCORED_FROM) if what.lists else 0


def pages(dim: int) -> int:
    """Of a row in the store, with its vector.

    >>> pages(64), pages(2048)
    (1, 3)
    """
    return 1 + 4 * dim // PAGE


def expected_recall(what: Structure, count: int, known: Constants) -> float:
    """1 − misses, which grow with the logarithm of a shard's size; beyond the sizes measured it is a guess."""
    if what.kind == "Flat":
        return 1.0
    misses = known.misses[what.kind]
    return 1 - min(1.0, misses.share + misses.slope * max(0.0, math.log10(count / misses.count)))
