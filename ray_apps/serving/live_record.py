"""Which generation of model and index is live: a record that every ingress follows and answers to.

A generation is an application of its own; the ingress asks the one that the record names. To replace it, writes are
held back first, and go on by themselves should whoever does the replacing be lost. Knows Ray's key-value store.
"""

import json
import time
import uuid
from typing import Any, NamedTuple

import ray
from ray.experimental import internal_kv

SPACE, RECORD, SEEN, TOLD, OWNER = b"lrem", b"live", b"seen/", b"told", b"owner"
POLL_S = 0.25  # how often an ingress looks
PAUSE_S = 60.0  # the longest that writes are held back


class Generation:
    """The root of a generation's application: it keeps the parts together, and has no route."""

    def __init__(self, parts: Any) -> None:
        self.parts = parts


class Live(NamedTuple):
    """The live generation: its application, its model, its shards' folder and machines, until when writes wait."""

    application: str
    model: str
    folder: str
    nodes: list[str]  # of each shard
    revision: str
    paused_until: float = 0.0  # Unix seconds

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return len(self.nodes)

    @property
    def paused(self) -> bool:
        """Whether writes wait now."""
        return time.time() < self.paused_until


def announce(application: str, model: str, folder: str, nodes: list[str], pause: bool = False) -> Live:
    """Write the record; each ingress follows within moments and says so, see `seen_by`."""
    until = time.time() + PAUSE_S if pause else 0.0
    live = Live(application, model, folder, nodes, uuid.uuid4().hex, until)
    for key in internal_kv._internal_kv_list(SEEN, namespace=SPACE):
        internal_kv._internal_kv_del(key, namespace=SPACE)
    internal_kv._internal_kv_put(RECORD, json.dumps(live._asdict()).encode(), namespace=SPACE)
    return live


def read() -> Live | None:
    """The record; None before the first."""
    found = internal_kv._internal_kv_get(RECORD, namespace=SPACE)
    return None if found is None else Live(**json.loads(found))


def forget() -> None:
    """Remove the record, with the applications."""
    for key in (RECORD, TOLD, OWNER):
        internal_kv._internal_kv_del(key, namespace=SPACE)


def own() -> None:
    """Keep which process deployed last: this one."""
    internal_kv._internal_kv_put(OWNER, _process(), namespace=SPACE)


def owned() -> bool:
    """Whether no other process has deployed since this one did."""
    return bool(internal_kv._internal_kv_get(OWNER, namespace=SPACE) == _process())


def _process() -> bytes:
    return str(ray.get_runtime_context().get_job_id()).encode()


def tell(told: str) -> None:
    """Keep a digest of what the ingress was started with."""
    internal_kv._internal_kv_put(TOLD, told.encode(), namespace=SPACE)


def told() -> str:
    """That digest; empty before the first."""
    return (internal_kv._internal_kv_get(TOLD, namespace=SPACE) or b"").decode()


def see(live: Live, replica: str) -> None:
    """An ingress says that it follows a record: new requests go by it, and writes under way before it have ended."""
    internal_kv._internal_kv_put(f"seen/{live.revision}/{replica}".encode(), b"1", namespace=SPACE)


def seen_by(live: Live) -> int:
    """How many replicas of the ingress follow a record."""
    return len(internal_kv._internal_kv_list(f"seen/{live.revision}/".encode(), namespace=SPACE))
