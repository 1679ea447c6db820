"""The vector index: string ids, payloads and Faiss vectors in one snapshot tied to the model's fingerprint."""

from lrem.index.ann import BuildError
from lrem.index.snapshot import SnapshotError, load, save
from lrem.index.vector_index import Hit, VectorIndex

__all__ = ["BuildError", "Hit", "SnapshotError", "VectorIndex", "load", "save"]
