"""The tables that stage 1 trains on."""

import pyarrow as pa

from lrem.config import ColdStartConfig, Config
from lrem.data.schema import RL_PAIRS, TRIPLETS


def training_tables(config: Config, stage: ColdStartConfig) -> dict[str, pa.Schema]:
    """Return URI → schema of the tables that stage 1 trains on.

    The direct baseline sees the pairs of both stages, so that neither side has more data.
    """
    tables = {config.uri("triplets"): TRIPLETS}
    if stage.rl_pairs or stage.objective == "direct":
        tables[config.uri("rl_pairs")] = RL_PAIRS
    return tables
