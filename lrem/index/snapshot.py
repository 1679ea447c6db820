"""Snapshots of a collection, to a path or an object store, and back.

A snapshot is a folder: items.sqlite, ann/…, and a manifest with the model's fingerprint, the dimension and the sha256
of each file. The manifest is written last, so a folder without one is no snapshot yet. Any address that pyarrow knows
is taken (s3://, gs://, file://, a path). Knows collections and files; does not know when it is called.
"""

import json
import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pyarrow import fs

from lrem.data.files import atomic_folder, sha256
from lrem.errors import SnapshotError, StoreError
from lrem.index import checkpoint
from lrem.index.collection import ANN, CLOSE_TIMEOUT_S, FORMAT, ITEMS, PART, Collection
from lrem.index.store import Store

MANIFEST = "manifest.json"
FILES = (ITEMS, *(f"{ANN}/{name}" for name in (checkpoint.VECTORS, checkpoint.ROWS, checkpoint.MANIFEST)))


def write_snapshot(collection: Collection, destination: str | Path, source: str | None = None) -> dict[str, Any]:
    """Write the collection as it is now, while it is searched and written to. Returns the manifest.

    The search structure may lag behind the items by what is written meanwhile; opening makes up for it.

    Raises:
        SnapshotError: a snapshot is there already, or the place cannot be written to.
    """
    place, folder = _place(destination)
    try:
        if place.get_file_info(f"{folder}/{MANIFEST}").type != fs.FileType.NotFound:
            raise SnapshotError(f"{destination} holds a snapshot already: choose another name, or delete it first")
        with collection.alone(), tempfile.TemporaryDirectory(dir=collection.folder, prefix=PART) as made:
            part = Path(made)
            collection.save(part / ANN)
            collection.store.copy(part / ITEMS)
            manifest = {
                "format": FORMAT,
                "model": collection.model,
                "dimension": collection.dimension,
                "count": len(collection),
                "source": source,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "sha256": {name: sha256(part / name) for name in FILES},
            }
            for name in FILES:
                place.create_dir(str(Path(folder, name).parent), recursive=True)
                fs.copy_files(str(part / name), f"{folder}/{name}", fs.LocalFileSystem(), place)
        with place.open_output_stream(f"{folder}/{MANIFEST}") as out:
            out.write(json.dumps(manifest, indent=2).encode())
    except (OSError, sqlite3.OperationalError) as error:
        raise SnapshotError(f"{destination} cannot be written ({error}): the snapshot is not whole") from error
    return manifest


def restore(source: str | Path, folder: Path, model: str | None = None) -> dict[str, Any]:
    """Make the collection `folder` from a snapshot; nothing is there unless all of it is whole. Returns the manifest.

    Args:
        folder: where nothing is yet.
        model: the fingerprint that queries will be embedded with; None takes any.

    Raises:
        SnapshotError: no snapshot there, it is another model's, a file is torn or altered, or `folder` is taken.
    """
    if folder.exists():
        raise SnapshotError(f"{folder} is there already: restore beside it, under another name")
    place, origin = _place(source)
    manifest = read_manifest(source, model)
    with atomic_folder(folder) as part:
        (part / ANN).mkdir()
        for name, digest in manifest["sha256"].items():
            try:
                fs.copy_files(f"{origin}/{name}", str(part / name), place, fs.LocalFileSystem())
            except OSError as error:
                raise SnapshotError(f"{source}/{name} cannot be read ({error}): use another snapshot") from error
            if sha256(part / name) != digest:
                raise SnapshotError(f"{source}/{name} is damaged (sha256 differs): use another snapshot")
        about = {name: manifest[name] for name in ("format", "model", "dimension")}
        try:
            Store(part / ITEMS, about, create=False).close()
        except StoreError as error:
            raise SnapshotError(f"{source}/{MANIFEST} does not belong to its items ({error})") from error
    return manifest


def read_manifest(source: str | Path, model: str | None = None) -> dict[str, Any]:
    """What a snapshot says of itself, without reading its items: `model`, `dimension`, `count`, `created`, `sha256`.

    Raises:
        SnapshotError: no snapshot there, or it belongs to another model than `model`.
    """
    place, folder = _place(source)
    try:
        with place.open_input_stream(f"{folder}/{MANIFEST}") as stream:
            manifest: dict[str, Any] = json.loads(stream.read())
    except FileNotFoundError as error:
        raise SnapshotError(
            f"{source} holds no index snapshot, or one that was not finished: run `lrem index build` first"
        ) from error
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{source}/{MANIFEST} cannot be read ({error}): use another snapshot") from error
    whole = isinstance(manifest, dict) and {"format", "model", "dimension", "count", "sha256"} <= set(manifest)
    if not whole or manifest["format"] != FORMAT or set(manifest["sha256"]) != set(FILES):
        raise SnapshotError(f"{source} is no index snapshot in format {FORMAT}: run `lrem index build` again")
    if model is not None and manifest["model"] != model:
        raise SnapshotError(
            f"{source} was built with model {manifest['model']}, queries use model {model}: "
            "run `lrem embed` and `lrem index build` with this model"
        )
    return manifest


def open_snapshot(source: str | Path, model: str | None = None) -> Collection:
    """The collection of a snapshot, to be searched: its files have no name any more, and go with the process.

    Raises:
        SnapshotError: as `restore`.
    """
    with tempfile.TemporaryDirectory(prefix="lrem-index-") as made:
        restore(source, Path(made, "index"), model)
        collection = Collection(Path(made, "index"))
        collection.wait(CLOSE_TIMEOUT_S)  # a rebuild would save what it made
    return collection


def _place(where: str | Path) -> tuple[fs.FileSystem, str]:
    if "://" not in str(where):
        return fs.LocalFileSystem(), str(Path(where).absolute())
    try:
        place, folder = fs.FileSystem.from_uri(str(where))
    except (ValueError, OSError) as error:
        raise SnapshotError(
            f"{where} is no address that pyarrow knows ({error}): s3://, gs://, file:// or a path"
        ) from error
    return place, folder.rstrip("/")
