"""What a catalogue and its traffic need: shards, replicas, machines, GPUs, and what each index choice costs and finds.

Computes from measured constants (`Constants`) and sizes (lrem.capacity.footprint). The model, what it leaves out and
how it was checked: docs/capacity.md.
"""

import math
from typing import NamedTuple

from pydantic import ConfigDict, Field

from lrem.capacity.footprint import Held, Item, Structure, held, rebuilt, saved, store, structure, trained_on
from lrem.capacity.search_cost import Asked, Constants, candidates, expected_recall, pages, search_ms
from lrem.config import Section
from lrem.errors import DataError

FAMILIES = ("Flat", "HNSW32", "IVF,Flat", "IVF,SQ8", "IVF,PQ")
SHARDS = [*range(1, 65), *(round(64 * 1.05**i) for i in range(1, 86))]  # what is tried: all, from 64 on twentieths
USABLE = 0.9  # of a machine's memory: the rest is the system's, and the node's own Ray processes'
HOURS = 730  # of a month


class Needs(Section):
    """What is asked for. Bytes and milliseconds where nothing else is said."""

    model_config = ConfigDict(allow_inf_nan=False)

    items: int = Field(ge=1)
    dim: int = Field(ge=2)
    qps: float = Field(gt=0)
    think: float = Field(0.75, ge=0, le=1)  # share of the queries that are thought over
    tokens: float = Field(16, ge=1)  # of a reasoning
    cached: float = Field(0.0, ge=0, lt=1)  # share of the queries whose thought and vector an ingress still has
    k: int = Field(10, ge=1, le=1000)
    recall: float = Field(0.95, ge=0, le=1)
    payload: int = Field(200, ge=2, le=65_536)  # of an item, as JSON
    texts: int = Field(1, ge=0, le=256)  # fields of words that no two items share
    text: int = Field(80, ge=0)  # of one of them
    fields: int = Field(4, ge=0, le=256)  # others that filters can ask
    memory: float = Field(64 * 2**30, gt=0)  # of a machine
    cores: int = Field(16, ge=1)
    spare: int = Field(1, ge=0)  # replicas of each part that may be lost
    load: float = Field(0.6, gt=0, le=1)  # share of a replica's time that is used
    search_ms: float = Field(100.0, gt=0)  # that a search of a shard may take
    store_cached: float = Field(1.0, ge=0, le=1)  # share of items.sqlite that the system's page cache holds
    rebuild: bool = True  # keep room for a rebuild, or for a new generation beside the old one
    structures: tuple[str, ...] = FAMILIES
    embedder_qps: float | None = Field(None, gt=0)  # of one replica; None: as measured
    reasoner_tokens: float | None = Field(None, gt=0)  # a second, of one replica; None: as measured
    embedder_gpus: float = Field(0.0, ge=0)  # of one replica
    reasoner_gpus: float = Field(0.0, ge=0)
    machine_price: float | None = Field(None, ge=0)  # of an hour
    gpu_price: float | None = Field(None, ge=0)


class Layout(NamedTuple):
    """One index choice, laid out: `items`, `parts`, `rebuilt`, `store`, `saved` and `ms` are one shard's."""

    what: Structure
    shards: int
    replicas: int  # of each shard
    together: int  # shards on one machine, with all their replicas
    machines: int
    items: int
    parts: Held
    process: float
    rebuilt: float
    store: float
    saved: float
    memory: float  # of a machine, as used
    ms: float
    recall: float
    reads: float  # of a machine's disk a second

    @property
    def replica(self) -> float:
        """Bytes that one replica holds while it serves."""
        return self.process + self.parts.total

    @property
    def disk(self) -> float:
        """Bytes of a machine's disk for the shards that live there."""
        return self.together * (self.store + self.saved)

    @property
    def start_disk(self) -> float:
        """And more while it is filled for the first time: each shard restores the whole snapshot beside its part."""
        return self.together * self.shards * (self.store + self.saved) if self.shards > 1 else 0.0


class Refused(NamedTuple):
    """An index choice that cannot be laid out, and what would change that."""

    family: str
    why: str


class Models(NamedTuple):
    """Replicas of embedder and reasoner, the GPUs that they share, machines for those without."""

    embedders: int
    reasoners: int
    gpus: int
    machines: int
    tokens: float  # that are written a second


def replicas(work: float, one: float, load: float, spare: int) -> int:
    """Replicas for `work` a second of which one can do `one` at full load, and those that may be lost.

    >>> replicas(100, 50, 0.5, 1)
    5
    """
    return math.ceil(work / (one * load)) + spare


def lay_out(family: str, needs: Needs, known: Constants) -> Layout | Refused:
    """The fewest machines, and on them the fewest shards. Replicas of a shard share one machine (docs/serving.md).

    A machine holds `together` shards: what their replicas hold and need for a rebuild, and the cached share of their
    stores; a core for each replica.
    """
    found: Layout | None = None
    for shards in (some for some in SHARDS if some <= needs.items):
        if found is not None and math.ceil(shards / (needs.cores // (1 + needs.spare))) > found.machines:
            break
        tried = _divided(family, shards, needs, known)
        if tried.together and tried.ms <= needs.search_ms and (found is None or tried.machines < found.machines):
            found = tried
    if found is None:
        return Refused(family, _why(tried, needs))
    if found.items < (need := trained_on(found.what, needs.dim)):
        return Refused(family, f"shards of {found.items:,} items are too few to train it, {need:,} are needed")
    return found


def best(laid: list[Layout], recall: float) -> Layout | None:
    """The fewest machines, then the fewest busy cores, among the layouts that are expected to find enough."""
    enough = [one for one in laid if one.recall >= recall]
    return min(enough, key=lambda one: (one.machines, one.shards * one.ms), default=None)


def _divided(family: str, shards: int, needs: Needs, known: Constants) -> Layout:
    count = math.ceil(needs.items / shards)
    item = Item(needs.dim, needs.payload, needs.texts, needs.text, needs.fields)
    what = structure(family, count, needs.dim)
    asked = Asked(needs.dim, needs.k, needs.store_cached)
    ms, parts = search_ms(what, count, asked, known), held(what, count, item)
    more = rebuilt(what, count, item) if needs.rebuild else 0.0
    copies = replicas(needs.qps, 1000 / ms, needs.load, needs.spare)
    size = store(count, item)
    shard = copies * (known.process_bytes + parts.total + more) + needs.store_cached * size
    together = min(shards, int(USABLE * needs.memory // shard), needs.cores // copies)
    reads = needs.qps * together * (candidates(what, needs.k) * pages(needs.dim) + needs.k) * (1 - needs.store_cached)
    return Layout(
        what=what,
        shards=shards,
        replicas=copies,
        together=together,
        machines=math.ceil(shards / together) if together else 0,
        items=count,
        parts=parts,
        process=known.process_bytes,
        rebuilt=more,
        store=size,
        saved=saved(what, count, item),
        memory=shard * max(1, together),
        ms=ms,
        recall=expected_recall(what, count, known),
        reads=reads,
    )


def _why(tried: Layout, needs: Needs) -> str:
    """What stands in the way of the most shards."""
    if tried.ms > needs.search_ms:
        return f"a search of {tried.items:,} items takes {tried.ms:.3g} ms: allow more, or use machines of faster cores"
    if tried.memory > USABLE * needs.memory:
        return (
            f"{tried.replicas} replicas of {tried.items:,} items need {tried.memory / 2**30:.3g} GiB, of a machine "
            f"{USABLE * needs.memory / 2**30:.3g} GiB can be used: take larger machines"
        )
    return f"a shard needs {tried.replicas} replicas, a machine has {needs.cores} cores: take larger machines"


def models(needs: Needs, known: Constants) -> Models:
    """Embedder and reasoner. Every query that no cache answers is embedded once; it writes `tokens` where it is thought
    over, and one, by which the model decides, where it is not.

    Raises:
        DataError: nobody has measured the reasoner, and no rate is given.
    """
    rate = needs.reasoner_tokens or known.reasoner_tokens
    if rate is None:
        raise DataError("the constants have no rate of the reasoner: give one, in tokens a second of a replica")
    asked = needs.qps * (1 - needs.cached)
    tokens = asked * (needs.think * needs.tokens + 1 - needs.think)
    embedders = replicas(asked, needs.embedder_qps or known.embedder_qps, needs.load, needs.spare)
    reasoners = replicas(tokens, rate, needs.load, needs.spare)
    gpus = devices(embedders, needs.embedder_gpus) + devices(reasoners, needs.reasoner_gpus)
    cores = 0 if needs.embedder_gpus else embedders
    cores += 0 if needs.reasoner_gpus else reasoners * known.reasoner_cores
    return Models(embedders, reasoners, gpus, math.ceil(cores / needs.cores), tokens)


def devices(count: int, share: float) -> int:
    """GPUs for replicas that take `share` of one each, or several whole ones.

    >>> devices(3, 0.5), devices(3, 2), devices(3, 0)
    (2, 6, 0)
    """
    if share == 0:
        return 0
    return math.ceil(count * share) if share >= 1 else math.ceil(count / int(1 / share + 1e-9))


def monthly(needs: Needs, machines: int, gpus: int) -> float | None:
    """Of a month, in the unit of the prices; None where a price that counts is not given.

    >>> monthly(Needs(items=1, dim=2, qps=1, machine_price=1, gpu_price=10), machines=2, gpus=1)
    8760.0
    """
    prices = [(machines, needs.machine_price), (gpus, needs.gpu_price)]
    if any(count and price is None for count, price in prices) or needs.machine_price is needs.gpu_price is None:
        return None
    return HOURS * sum(count * (price or 0.0) for count, price in prices)
