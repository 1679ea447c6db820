"""A segment on disk, so that opening a collection need not build it.

index.faiss     the vectors
rows.npy        the store's row at each position
manifest.json   factory and size, and the sha256 of both files; not the manifest of a snapshot (snapshot.py)

A damaged checkpoint is ignored: the store can always provide the items again.
"""

import json
import logging
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from lrem.data.files import atomic_folder, sha256
from lrem.index.ann import Ann
from lrem.index.segment import Segment

VECTORS, ROWS, MANIFEST = "index.faiss", "rows.npy", "manifest.json"

log = logging.getLogger(__name__)


def write(segment: Segment, folder: Path, writes_paused: AbstractContextManager[None]) -> None:
    """Write a segment's vectors and rows to `folder`, replacing it as a whole.

    Args:
        writes_paused: held while the segment is read.
    """
    with atomic_folder(folder) as part:
        with writes_paused:
            segment.ann.write(part / VECTORS)
            np.save(part / ROWS, segment.rows)
        manifest = {
            "factory": segment.ann.factory,
            "built_for": segment.built_for,
            "sha256": {name: sha256(part / name) for name in (VECTORS, ROWS)},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def remove_leftovers(folder: Path, *patterns: str) -> None:
    """Remove folders that a killed process left half-written."""
    for leftover in (path for pattern in patterns for path in folder.glob(pattern)):
        shutil.rmtree(leftover, ignore_errors=True)


def read(folder: Path, dimension: int) -> Segment | None:
    """Return the segment, still without payloads (see `Segment.attach_payloads`).

    Returns None if there is no checkpoint, or, with a warning, if it is damaged.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damage = [name for name in (VECTORS, ROWS) if sha256(folder / name) != manifest["sha256"][name]]
        if not damage:
            ann, rows = Ann.read(folder / VECTORS, manifest["factory"]), np.load(folder / ROWS)
            if ann.index.d == dimension and len(ann) == len(rows):
                return Segment(ann, manifest["built_for"], rows)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        damage = [str(error)]
    log.warning("%s is damaged (%s); the index is built again", folder, ", ".join(damage) or "sizes differ")
    return None
