"""A small file of triplets for the tests of commands and jobs."""

from pathlib import Path

import pyarrow as pa

from lrem.data.files import write_parquet
from lrem.data.schema import TRIPLETS


def write_triplets(run: Path) -> None:
    """Write 256 triplets, each of its own query, where a run expects them."""
    rows = [
        {
            "query_id": f"q{i}",
            "query": f"hat {i}",
            "reasoning": "wool",
            "item_id": f"p{i}",
            "title": f"wool hat {i}",
        }
        for i in range(256)
    ]
    write_parquet(pa.Table.from_pylist(rows, TRIPLETS), run / "curated/triplets.parquet")
