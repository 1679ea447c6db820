"""The capacity model of docs/capacity.md: bytes, milliseconds, shards, replicas, machines, GPUs of each structure."""

import math
from typing import NamedTuple

from pydantic import ConfigDict, Field

from lrem.config import Section
from lrem.errors import DataError
from lrem.index.ann import NPROBE, NPROBE_SHARE, training_size, usual_lists, usual_parts


class SearchCost(NamedTuple):
    """One core's search of one structure for 10 hits, measured: milliseconds = fixed_ms + work × ns / 10⁶."""

    fixed_ms: float
    ns: float
    recall: float  # at a million vectors


STRUCTURES = {  # as benchmarks/capacity.py prints it (x86_64, 2 cores, one thread)
    "Flat": SearchCost(0.0158, 0.2036, 1.0),
    "HNSW32": SearchCost(0.0, 129.9915, 0.996),
    "IVF,Flat": SearchCost(0.5314, 0.2786, 1.0),
    "IVF,SQ8": SearchCost(0.4376, 0.3022, 1.0),
    "IVF,PQ": SearchCost(0.3547, 1.1112, 1.0),
}
SHARDS = sorted({round(1.02**i) for i in range(421)})  # tried: every number up to 50, then 2 % steps up to 4,000
GIB = 2**30
PROCESS_BYTES = 123e6  # of a shard's process without items
USABLE_MEMORY_SHARE = 0.9  # of a machine's memory: the rest is for the system and the node's own Ray processes
REBUILD_PEAK_FACTOR = 1.2  # peak memory of a build ÷ memory of the index; measured: 1.0 to 1.2 at a million vectors
PAYLOAD_FACTOR = (
    2.3  # memory of the columns that filters read ÷ bytes of the payload as JSON; measured for short fields
)


class Requirements(Section):
    """Catalogue, traffic and machines: the options of `lrem plan`."""

    model_config = ConfigDict(allow_inf_nan=False)

    items: float = Field(ge=1, description="Items in the catalogue, e.g. 76e6.")
    dim: int = Field(ge=2, description="Dimensions of a vector.")
    qps: float = Field(gt=0, description="Queries per second at the peak.")
    structure: list[str] = Field([*STRUCTURES], description="Index structure to compare; repeatable.")
    recall: float = Field(0.95, ge=0, le=1, description="Recall that the recommended structure must reach.")
    payload: int = Field(200, ge=2, le=65_536, description="Bytes of an item's payload as JSON.")
    memory: float = Field(64, gt=0, description="GiB of memory per machine.")
    cores: int = Field(16, ge=1, description="Cores per machine.")
    spare: int = Field(1, ge=0, description="Replicas of each shard and model that may fail.")
    load: float = Field(0.6, gt=0, le=1, description="Share of a replica's time that may be busy.")
    search_ms: float = Field(100, gt=0, description="Milliseconds that searching a shard may take.")
    rebuild: bool = Field(True, description="Keep memory for a rebuild or a new generation.")
    think: float = Field(0.75, ge=0, le=1, description="Share of the queries that need reasoning.")
    tokens: float = Field(16, ge=1, description="Tokens per reasoning.")
    cached: float = Field(0, ge=0, lt=1, description="Share of the queries that a cache answers.")
    embedder_qps: float = Field(1080, gt=0, description="Queries per second of one embedder.")
    reasoner_tokens: float = Field(4870, gt=0, description="Tokens per second of one reasoner.")
    embedder_gpus: float = Field(0, ge=0, description="GPUs of one embedder, e.g. 0.5; without one it takes a core.")
    reasoner_gpus: float = Field(0, ge=0, description="GPUs of one reasoner; without one it takes two cores.")
    machine_price: float = Field(0, ge=0, description="Price of a machine per hour.")
    gpu_price: float = Field(0, ge=0, description="Price of a GPU per hour.")


def factory(name: str, count: int, dim: int) -> str:
    """Return the Faiss factory string, e.g. IVF8192,PQ128, with lists and parts as the index chooses them."""
    if name not in STRUCTURES:
        raise DataError(f"structure '{name}' is not modelled: choose from {' '.join(STRUCTURES)}")
    return name.replace("IVF", f"IVF{usual_lists(count)}").replace("PQ", f"PQ{usual_parts(dim)}")


def vector_bytes(name: str, dim: int) -> int:
    """Return the bytes of one vector in a structure: its numbers or its code, and its links or its id."""
    code = {"IVF,SQ8": dim, "IVF,PQ": usual_parts(dim)}.get(name, 4 * dim)
    return code + {"Flat": 0, "HNSW32": 4 * (2 * 32 + 1) + 12}.get(name, 8)


def item_bytes(name: str, needs: Requirements) -> float:
    """Return the memory of one item in a replica: vector, row number, deletion mark, payload columns."""
    return vector_bytes(name, needs.dim) + 9 + PAYLOAD_FACTOR * needs.payload


def stored_bytes(needs: Requirements) -> int:
    """Return the bytes of one item in items.sqlite; a row longer than a page of 4,096 bytes takes whole pages."""
    row = 4 * needs.dim + needs.payload + 50
    return row if row <= 4096 else 4096 * math.ceil(row / 4096)


def work(name: str, count: int, dim: int) -> float:
    """Return how many numbers one search compares: docs/capacity.md has the formulas."""
    if name == "Flat":
        return count * dim
    if name == "HNSW32":
        return math.log2(count + 1) * (dim + 128)  # hops to a vector and its links, which cost as much as 128 numbers
    lists = usual_lists(count)
    probed = min(1.0, max(NPROBE / lists, NPROBE_SHARE))
    return lists * dim + probed * count * (usual_parts(dim) if name == "IVF,PQ" else dim)


class Layout(NamedTuple):
    """One structure on machines; `problem` says why that is impossible, and is empty otherwise."""

    factory: str
    item_bytes: float
    replica_bytes: float  # of memory
    shards: int
    replicas: int  # of each shard, all on one machine
    machines: int
    disk: float  # bytes per machine
    ms: float
    recall: float
    problem: str


def lay_out(name: str, needs: Requirements) -> Layout:
    """Return the layout with the fewest machines, then the fewest shards, or one that says why there is none."""
    layouts = [divide(name, shards, needs) for shards in SHARDS if shards <= needs.items]
    trained = [layout for layout in layouts if not layout.problem.startswith("training")] or layouts[:1]
    possible = [layout for layout in trained if not layout.problem] or trained[-1:]
    return min(possible, key=lambda layout: (layout.machines, layout.shards))


def divide(name: str, shards: int, needs: Requirements) -> Layout:
    """Return the layout with this many shards. Machines keep items.sqlite in their page cache."""
    count = math.ceil(needs.items / shards)
    index, cost = factory(name, count, needs.dim), STRUCTURES[name]
    ms = cost.fixed_ms + work(name, count, needs.dim) * cost.ns / 1e6
    copies, memory = replicas(needs.qps, 1000 / ms, needs), count * item_bytes(name, needs)
    shard = copies * (PROCESS_BYTES + memory * (1 + REBUILD_PEAK_FACTOR * needs.rebuild)) + count * stored_bytes(needs)
    fit = min(shards, int(USABLE_MEMORY_SHARE * needs.memory * GIB // shard), needs.cores // copies)
    problem = ""
    if count < (trained_on := training_size(needs.dim, index)):
        problem = f"training needs {trained_on:,} items per shard, not {count:,}"
    elif ms > needs.search_ms:
        problem = f"searching {count:,} items takes {ms:.3g} ms: raise --search-ms, or use faster cores"
    elif not fit:
        problem = f"a shard of {count:,} items takes {shard / GIB:.3g} GiB and {copies} cores: use larger machines"
    return Layout(
        factory=index,
        item_bytes=item_bytes(name, needs),
        replica_bytes=PROCESS_BYTES + memory,
        shards=shards,
        replicas=copies,
        machines=math.ceil(shards / max(1, fit)),
        disk=fit * count * (stored_bytes(needs) + vector_bytes(name, needs.dim) + 8),
        ms=ms,
        recall=cost.recall,
        problem=problem,
    )


def replicas(rate: float, capacity: float, needs: Requirements) -> int:
    """Return the replicas for `rate` per second if one can do `capacity`, and the spare ones."""
    return math.ceil(rate / (capacity * needs.load)) + needs.spare


class ModelReplicas(NamedTuple):
    """Replicas of embedder and reasoner, their GPUs, and the machines for those without."""

    embedders: int
    reasoners: int
    gpus: int
    machines: int


def model_replicas(needs: Requirements) -> ModelReplicas:
    """Return what the models need. A query that no cache answers writes a reasoning or one token, and is embedded."""
    queries = needs.qps * (1 - needs.cached)
    embedders = replicas(queries, needs.embedder_qps, needs)
    reasoners = replicas(queries * (needs.think * needs.tokens + 1 - needs.think), needs.reasoner_tokens, needs)
    shares = ((embedders, needs.embedder_gpus), (reasoners, needs.reasoner_gpus))  # a GPU has whole replicas only
    gpus = sum(math.ceil(n / int(1 / gpu + 1e-9) if 0 < gpu < 1 else n * gpu) for n, gpu in shares)
    cores = embedders * (not needs.embedder_gpus) + 2 * reasoners * (not needs.reasoner_gpus)
    return ModelReplicas(embedders, reasoners, gpus, math.ceil(cores / needs.cores))
