"""The demo world: a synthetic shop whose hard queries need thinking, the same for the same seed.

Knows its own fact tables (facts/*.yaml) and the columns of lrem.data.schema; knows no model and no retriever.
"""

from lrem.world.generate import World, make_world

__all__ = ["World", "make_world"]
