"""The live record in Ray's key-value store: which generation of model and index is live, and which ingresses follow it.

A generation is a Serve application of its own, and every ingress calls the one that the record names. During a
replacement the record pauses writes; the pause expires, in case the process that replaces dies.
"""

import json
import time
import uuid
from typing import NamedTuple

import ray
from ray.experimental import internal_kv

NAMESPACE, RECORD, FOLLOWERS, INGRESS_DIGEST, OWNER = b"lrem", b"live", b"seen/", b"told", b"owner"
POLL_S = 0.25  # between two reads of an ingress
PAUSE_S = 60.0  # the longest pause of writes


class LiveRecord(NamedTuple):
    """The live generation.

    Attributes:
        application: its Serve application.
        model: fingerprint of its model.
        folder: the folder of its shards.
        nodes: the address of each shard's machine.
        revision: a new one for each record that is published.
        paused_until: end of the pause of writes, Unix seconds.
    """

    application: str
    model: str
    folder: str
    nodes: list[str]
    revision: str
    paused_until: float = 0.0

    @property
    def shards(self) -> int:
        """Return the number of shards."""
        return len(self.nodes)

    @property
    def paused(self) -> bool:
        """Return whether writes are paused now."""
        return time.time() < self.paused_until


def publish(application: str, model: str, folder: str, nodes: list[str], pause: bool = False) -> LiveRecord:
    """Write the record; every ingress follows within moments and acknowledges it (`count_followers`)."""
    paused_until = time.time() + PAUSE_S if pause else 0.0
    record = LiveRecord(application, model, folder, nodes, uuid.uuid4().hex, paused_until)
    for key in internal_kv._internal_kv_list(FOLLOWERS, namespace=NAMESPACE):
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)
    internal_kv._internal_kv_put(RECORD, json.dumps(record._asdict()).encode(), namespace=NAMESPACE)
    return record


def read() -> LiveRecord | None:
    """Return the record; None before the first."""
    value = internal_kv._internal_kv_get(RECORD, namespace=NAMESPACE)
    return None if value is None else LiveRecord(**json.loads(value))


def clear() -> None:
    """Remove the record, when the applications are removed."""
    for key in (RECORD, INGRESS_DIGEST, OWNER):
        internal_kv._internal_kv_del(key, namespace=NAMESPACE)


def acknowledge(record: LiveRecord, replica: str) -> None:
    """Record that an ingress follows: its new requests use the record, its writes under an older one have ended."""
    internal_kv._internal_kv_put(_follower_key(record, replica), b"1", namespace=NAMESPACE)


def count_followers(record: LiveRecord) -> int:
    """Return how many replicas of the ingress follow a record."""
    return len(internal_kv._internal_kv_list(_follower_key(record, ""), namespace=NAMESPACE))


def claim_ownership() -> None:
    """Record this process as the one that deployed last."""
    internal_kv._internal_kv_put(OWNER, _process(), namespace=NAMESPACE)


def is_owner() -> bool:
    """Return True if no other process has deployed since this one did."""
    return bool(internal_kv._internal_kv_get(OWNER, namespace=NAMESPACE) == _process())


def save_ingress_digest(digest: str) -> None:
    """Keep a digest of the settings that the ingress was started with."""
    internal_kv._internal_kv_put(INGRESS_DIGEST, digest.encode(), namespace=NAMESPACE)


def read_ingress_digest() -> str:
    """Return that digest; empty before the first."""
    return (internal_kv._internal_kv_get(INGRESS_DIGEST, namespace=NAMESPACE) or b"").decode()


def _follower_key(record: LiveRecord, replica: str) -> bytes:
    return FOLLOWERS + f"{record.revision}/{replica}".encode()


def _process() -> bytes:
    return str(ray.get_runtime_context().get_job_id()).encode()
