"""The demo world: a synthetic shop with hard queries that need reasoning; the same seed gives the same shop."""

from lrem.world.generate import World, make_world

__all__ = ["World", "make_world"]
