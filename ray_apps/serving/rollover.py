"""One generation takes the place of another: what was written to the old one is carried over before requests go on.

Nothing is lost and nobody waits but writers, for moments: most is carried over while the old generation is written to,
the rest while writes are held back. Knows the live record and the shards' changes; does not know how parts are started.
"""

import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from lrem.index.changes import FILE, State, pending
from lrem.index.shard import owner
from ray_apps.serving import live_record
from ray_apps.serving.generation import Plan
from ray_apps.serving.live_record import Live

LIMIT = 500  # items carried over at a time
log = logging.getLogger(__name__)
CALL_S = 120.0  # for one call of a part
SEEN_S = 30.0  # for every ingress to follow


def switch(old: Live, planned: Plan, ingresses: Callable[[], int]) -> int:
    """Make a running generation the live one. Returns how many items were carried over or deleted.

    Args:
        ingresses: how many replicas of the ingress run.

    Raises:
        TimeoutError: an ingress does not follow, or carrying over the rest took too long; the old one stays live.
    """
    told = (planned.name, planned.model, str(planned.folder), planned.nodes)
    if (old.folder, old.nodes) == (str(planned.folder), planned.nodes):  # both see what the other writes
        _wait_seen(live_record.announce(*told), ingresses)
        return 0
    states: dict[int, State] = {}
    carried = _carry(old, planned, states)
    paused = live_record.announce(old.application, old.model, old.folder, old.nodes, pause=True)
    try:
        _wait_seen(paused, ingresses)
        carried += _carry(old, planned, states)
        if time.time() > paused.paused_until - live_record.PAUSE_S / 4:
            raise TimeoutError(
                f"what was written meanwhile took longer than {live_record.PAUSE_S:.0f} s: try when less comes in"
            )
        if live_record.read() != paused:
            raise TimeoutError("another `lrem serve` replaces the index at the same time: run one after the other")
    except BaseException:
        if live_record.read() == paused:  # another's record stands
            live_record.announce(old.application, old.model, old.folder, old.nodes)
        raise
    _wait_seen(
        live_record.announce(*told, pause=True), ingresses
    )  # everyone asks the new one before anyone writes to it
    live_record.announce(*told)
    for i, state in states.items():
        _result(serve.get_deployment_handle(f"IndexShard{i}", old.application).told.remote(state))
    return carried


def left_behind(planned: Plan) -> dict[str, int]:
    """Folder → how much was written there that nothing newer knows of, of the other indexes on this machine."""
    others = [file.parent for file in planned.folder.parent.glob(f"*/shard-*/{FILE}")]
    counts = {}
    for folder in others:
        try:
            counts[str(folder)] = 0 if folder.parent == planned.folder else pending(folder)
        except (ValueError, TypeError, OSError, sqlite3.Error) as error:  # damaged, or of another version
            log.warning("%s cannot be read (%s)", folder, error)
    return {folder: count for folder, count in counts.items() if count}


def _carry(old: Live, planned: Plan, states: dict[int, State]) -> int:
    """Write the changes of every old shard to the new ones, from `states` on, which it moves."""
    embedder = serve.get_deployment_handle("Embedder", planned.name)
    targets = [serve.get_deployment_handle(f"IndexShard{i}", planned.name) for i in range(len(planned.nodes))]
    carried = 0
    for i in range(old.shards):
        if old.folder == str(planned.folder) and old.nodes[i] == planned.nodes[i]:
            continue  # both have this shard open: there is nothing to carry, and it would never end
        source = serve.get_deployment_handle(f"IndexShard{i}", old.application)
        while True:
            found = _result(source.changes.remote(states.get(i), LIMIT))
            if found.upserted:
                titles = [payload["title"] for _, payload in found.upserted]
                vectors = _result(embedder.items.remote(titles))
                for target, rows in _by_owner([item_id for item_id, _ in found.upserted], targets):
                    items = [found.upserted[row] for row in rows]
                    ids, payloads = [item[0] for item in items], [item[1] for item in items]
                    _result(target.upsert.remote(ids, payloads, vectors[rows], planned.model))
            for target, rows in _by_owner(found.deleted, targets):
                _result(target.delete.remote([found.deleted[row] for row in rows]))
            carried += len(found.upserted) + len(found.deleted)
            states[i] = found.state
            if len(found.upserted) < LIMIT:
                break
    return carried


def _by_owner(ids: list[str], targets: list[DeploymentHandle]) -> list[tuple[DeploymentHandle, list[int]]]:
    rows: dict[int, list[int]] = {}
    for row, item_id in enumerate(ids):
        rows.setdefault(owner(item_id, len(targets)), []).append(row)
    return [(targets[shard], mine) for shard, mine in rows.items()]


def _result(response: Any) -> Any:
    return response.result(timeout_s=CALL_S)


def _wait_seen(record: Live, ingresses: Callable[[], int]) -> None:
    deadline = time.monotonic() + SEEN_S
    while live_record.seen_by(record) < max(1, ingresses()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {SEEN_S:.0f} s for every ingress to follow {record.application}: see its log")
        time.sleep(live_record.POLL_S / 2)
