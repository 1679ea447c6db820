"""The vector index: string ids, payloads and Faiss vectors in one snapshot tied to the model's fingerprint."""

from lrem.index.snapshot import SnapshotError, load, save
from lrem.index.vector_index import BuildError, Hit, VectorIndex

__all__ = ["BuildError", "Hit", "SnapshotError", "VectorIndex", "load", "save"]
