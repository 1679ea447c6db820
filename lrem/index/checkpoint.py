"""The search structure on disk, so that a collection need not be built at every opening.

index.faiss     the vectors
rows.npy        the store's row at each position
manifest.json   what it is, and the sha256 of the two

Knows segments and files. What it reads is whole or nothing: the store can always give everything again.
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


def write(segment: Segment, folder: Path, unchanged: AbstractContextManager[Any]) -> None:
    """Write a segment's index and rows, replacing older ones whole; within `unchanged` nobody writes to the segment."""
    with atomic_folder(folder) as part:
        with unchanged:
            segment.ann.write(part / VECTORS)
            np.save(part / ROWS, segment.rows)
        manifest = {
            "factory": segment.ann.factory,
            "built_for": segment.built_for,
            "sha256": {name: sha256(part / name) for name in (VECTORS, ROWS)},
        }
        (part / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def tidy(folder: Path, *patterns: str) -> None:
    """Remove what a killed process left half-written."""
    for left in (found for pattern in patterns for found in folder.glob(pattern)):
        shutil.rmtree(left, ignore_errors=True)


def read(folder: Path, dimension: int) -> Segment | None:
    """Read it back, without payloads (see `Segment.describe`); None, and a line in the log, where it is not whole."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        damaged = [name for name in (VECTORS, ROWS) if sha256(folder / name) != manifest["sha256"][name]]
        if not damaged:
            ann, rows = Ann.read(folder / VECTORS, manifest["factory"]), np.load(folder / ROWS)
            if ann.index.d == dimension and len(ann) == len(rows):
                return Segment(ann, manifest["built_for"], rows)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        damaged = [str(error)]
    log.warning("%s is damaged (%s): the index is built anew", folder, ", ".join(damaged) or "sizes differ")
    return None
