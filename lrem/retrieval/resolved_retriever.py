"""A retriever setting, resolved once: its kind, its model, its index, and a fingerprint of them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lrem.data.files import checksum
from lrem.errors import DataError
from lrem.retrieval.retriever_kind import RetrieverKind, retriever_kind
from lrem.retrieval.retrievers import Retriever, open_retriever
from lrem.retrieval.text_model import model_fingerprint

if TYPE_CHECKING:
    from lrem.index.snapshot import SnapshotManifest


@dataclass(frozen=True)
class ResolvedRetriever:
    """A retriever setting after one look at the disk, so that no later step has to inspect it again.

    Attributes:
        kind: what the setting names.
        model: the folder of the model that embeds queries; None for BM25.
        index: the snapshot of the catalogue's vectors; None for BM25, and for a model folder until one is built.
        fingerprint: identifies everything but the catalogue that its rankings depend on.
    """

    kind: RetrieverKind
    model: str | None
    index: str | None
    fingerprint: str

    def open(self, items: Path) -> Retriever:
        """Load the retriever over the catalogue `items`.

        Raises:
            SnapshotError: the index is missing, damaged, or of another model.
        """
        return open_retriever(self.model or "bm25", items, self.index or "")


def resolve_retriever(spec: str, snapshot_model: Path, items: Path) -> ResolvedRetriever:
    """Resolve a retriever setting.

    Args:
        spec: `bm25`, a model folder, or an index snapshot (a folder or a URI).
        snapshot_model: the folder of the model that embeds queries if `spec` is a snapshot.
        items: the catalogue, which a snapshot must have been built from.

    Raises:
        DataError: `spec` is not one of these, or the snapshot is of another catalogue.
        SnapshotError: the snapshot cannot be read, or is of another model.
    """
    kind = retriever_kind(spec)
    if kind == "bm25":
        return ResolvedRetriever(kind, None, None, spec)
    if kind == "snapshot":
        manifest = check_index(spec, model_fingerprint(str(snapshot_model)), items)
        return ResolvedRetriever(kind, str(snapshot_model), spec, json.dumps(manifest, sort_keys=True))
    return ResolvedRetriever(kind, spec, None, model_fingerprint(spec))


def check_index(index: str, model: str, items: Path) -> "SnapshotManifest":
    """Check that an index snapshot is of this model (by fingerprint) and of this catalogue; return its manifest.

    Raises:
        SnapshotError: there is no snapshot, or it is of another model.
        DataError: it is of another catalogue.
    """
    from lrem.index.snapshot import read_manifest

    manifest = read_manifest(index, model)
    if manifest.get("source") != checksum(items):
        raise DataError(f"{index} was not built from {items}: run `lrem embed` and `lrem index build` again")
    return manifest
