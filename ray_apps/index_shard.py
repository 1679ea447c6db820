"""One shard of the index in the service, as Ray Serve runs it.

Imports neither torch nor transformers: a shard starts in a moment and holds little but its vectors.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import faiss
import numpy as np

from lrem.index import Hit, load
from lrem.index.filters import Filter
from lrem.index.shard import take

THREADS = 1  # of Faiss in a shard: scale by shards, never oversubscribe the cores


class IndexShard:
    """The rows of the snapshot that this shard owns."""

    def __init__(self, folder: str, model: str, shard: int, shards: int) -> None:
        # OpenMP keeps its thread count for each calling thread: set it in the one that searches.
        self.thread = ThreadPoolExecutor(1, initializer=faiss.omp_set_num_threads, initargs=(THREADS,))
        self.index = take(load(Path(folder), model=model), shard, shards)
        _ = self.index.columns  # made now, lest the first filter keeps others waiting

    async def search(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[list[Hit]]:
        """The k best rows of this shard for each vector, among those that match. vectors: [Q, H] float32."""
        if len(self.index) == 0:
            return [[] for _ in vectors]
        return await asyncio.get_running_loop().run_in_executor(self.thread, self.index.search, vectors, k, where)
