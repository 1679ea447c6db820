"""What a retriever setting names: BM25, a model folder, or an index snapshot."""

from pathlib import Path
from typing import Literal

from lrem.errors import DataError

RetrieverKind = Literal["bm25", "lrem", "sentence-transformers", "snapshot"]


def retriever_kind(spec: str, role: str = "retriever") -> RetrieverKind:
    """Return what a retriever setting names; `role` is what messages call it.

    Raises:
        DataError: it names nothing, or a folder of another kind.
    """
    folder = Path(spec)
    if spec == "bm25":
        return "bm25"
    if (folder / "lrem_template.json").exists():
        return "lrem"
    if (folder / "modules.json").exists():
        return "sentence-transformers"
    if "://" in spec or (folder / "manifest.json").exists():
        return "snapshot"
    if folder.exists():
        raise DataError(
            f"{spec} is neither a model of ours (lrem_template.json) or of sentence-transformers (modules.json) nor an "
            "index snapshot (manifest.json): name one of these, or bm25"
        )
    choices = "a model folder, an index snapshot, or bm25" if role == "retriever" else "a model folder"
    raise DataError(f"the {role} {spec} does not exist: name {choices}")
