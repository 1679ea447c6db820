"""Rollover: one generation replaces another, and what was written to the old one is carried over.

    1. carry over most changes, while the old generation still takes writes
    2. pause writes, carry over the rest
    3. publish the new generation with writes paused, wait for every ingress, resume writes

No write is lost, and only writes wait, for moments.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lrem.index.changes import START_FILE, Watermark, count_pending
from lrem.index.shard import owner
from ray_apps.serving import live_record
from ray_apps.serving.generation import GenerationPlan
from ray_apps.serving.handles import GenerationHandles, IndexShardHandle, Payload, RemoteResponse, connect
from ray_apps.serving.live_record import LiveRecord

BATCH = 500  # items carried over at a time
CALL_S = 120.0  # timeout of one call of a deployment
FOLLOW_S = 30.0  # timeout for every ingress to follow
T = TypeVar("T")

log = logging.getLogger(__name__)


def switch(old: LiveRecord, plan: GenerationPlan, ingresses: Callable[[], int]) -> int:
    """Make a running generation the live one; return how many items were carried over or deleted.

    Args:
        old: the live generation.
        plan: the running generation that replaces it.
        ingresses: returns the number of replicas of the ingress.

    Raises:
        TimeoutError: an ingress does not follow, or carrying over the rest took too long; the old one stays live.
    """
    new = (plan.name, plan.model, str(plan.folder), plan.nodes)
    if (old.folder, old.nodes) == (str(plan.folder), plan.nodes):  # the two share their shards' files
        _wait_for_followers(live_record.publish(*new), ingresses)
        return 0
    states: dict[int, Watermark] = {}
    carried = _carry_over(old, plan, states)
    paused = live_record.publish(old.application, old.model, old.folder, old.nodes, pause=True)
    try:
        _wait_for_followers(paused, ingresses)
        carried += _carry_over(old, plan, states)
        if time.time() > paused.paused_until - live_record.PAUSE_S / 4:
            raise TimeoutError(
                f"carrying over the last writes took longer than {live_record.PAUSE_S:.0f} s: retry under less load"
            )
        if live_record.read() != paused:
            raise TimeoutError("another `lrem serve` is already replacing the index: run one after the other")
    except BaseException:
        if live_record.read() == paused:  # leave another process's record alone
            live_record.publish(old.application, old.model, old.folder, old.nodes)
        raise
    # still paused: every ingress must call the new generation before any of them writes to it
    _wait_for_followers(live_record.publish(*new, pause=True), ingresses)
    live_record.publish(*new)
    shards = connect(old.application, old.model, old.shards).shards
    for i, state in states.items():
        _result(shards[i].mark_carried_over.remote(state))
    return carried


def lost_writes(plan: GenerationPlan) -> dict[str, int]:
    """Return folder → number of writes in shards of other indexes on this machine that no newer index has."""
    folders = [file.parent for file in plan.folder.parent.glob(f"*/shard-*/{START_FILE}")]
    counts = {str(folder): _count_pending(folder) for folder in folders if folder.parent != plan.folder}
    return {folder: count for folder, count in counts.items() if count}


def _count_pending(folder: Path) -> int:
    try:
        return count_pending(folder)
    except (ValueError, TypeError, OSError, sqlite3.Error) as error:  # damaged, or of another version
        log.warning("%s cannot be read (%s)", folder, error)
        return 0


def _carry_over(old: LiveRecord, plan: GenerationPlan, states: dict[int, Watermark]) -> int:
    """Write the changes of every old shard since `states` to the new shards; advances `states`."""
    sources = connect(old.application, old.model, old.shards).shards
    targets = connect(plan.name, plan.model, len(plan.nodes))
    carried = 0
    for i, source in enumerate(sources):
        if old.folder == str(plan.folder) and old.nodes[i] == plan.nodes[i]:
            continue  # source and target are the same files: there is nothing to carry, and it would never end
        full = True
        while full:
            changes = _result(source.changes.remote(states.get(i), BATCH))
            _upsert(changes.upserted, targets)
            for target, rows in _by_owner(changes.deleted, targets.shards):
                _result(target.delete.remote([changes.deleted[row] for row in rows]))
            carried += len(changes.upserted) + len(changes.deleted)
            states[i] = changes.watermark
            full = len(changes.upserted) == BATCH
    return carried


def _upsert(items: list[tuple[str, Payload]], targets: GenerationHandles) -> None:
    """Embed items with the new model and write each to its shard."""
    if not items:
        return
    vectors = _result(targets.embedder.embed_items.remote([payload["title"] for _, payload in items]))
    for target, rows in _by_owner([item_id for item_id, _ in items], targets.shards):
        ids, payloads = [items[row][0] for row in rows], [items[row][1] for row in rows]
        _result(target.upsert.remote(ids, payloads, vectors[rows], targets.model))


def _by_owner(ids: list[str], targets: list[IndexShardHandle]) -> list[tuple[IndexShardHandle, list[int]]]:
    """Return each shard that owns some of the ids, with the positions of its ids."""
    positions: dict[int, list[int]] = {}
    for row, item_id in enumerate(ids):
        positions.setdefault(owner(item_id, len(targets)), []).append(row)
    return [(targets[shard], rows) for shard, rows in positions.items()]


def _result(response: RemoteResponse[T]) -> T:
    return response.result(timeout_s=CALL_S)


def _wait_for_followers(record: LiveRecord, ingresses: Callable[[], int]) -> None:
    deadline = time.monotonic() + FOLLOW_S
    while live_record.count_followers(record) < max(1, ingresses()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {FOLLOW_S:.0f} s for every ingress to follow {record.application}: see its log")
        time.sleep(live_record.POLL_S / 2)
