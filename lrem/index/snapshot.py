"""Snapshots of a collection: written to a path or an object store, and restored from there.

A snapshot is a folder with items.sqlite, ann/… and a manifest: the model's fingerprint, the dimension and the sha256 of
each file. The manifest is written last, so a folder without one is not a snapshot. The manifest.json inside ann/ is
another one: the checkpoint's, see checkpoint.py. Any URI that pyarrow supports works (s3://, gs://,
file://), or a path.
"""

import json
import sqlite3
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

from pyarrow import fs

from lrem.data.files import atomic_folder, sha256
from lrem.errors import SnapshotError, StoreError
from lrem.index import checkpoint
from lrem.index.collection import ANN, CLOSE_TIMEOUT_S, FORMAT, ITEMS, PART, Collection
from lrem.index.store import Store

MANIFEST = "manifest.json"
FILES = (ITEMS, *(f"{ANN}/{name}" for name in (checkpoint.VECTORS, checkpoint.ROWS, checkpoint.MANIFEST)))


class SnapshotManifest(TypedDict):
    """The manifest of a snapshot, as JSON."""

    format: int
    model: str  # fingerprint
    dimension: int
    count: int  # items
    source: str | None  # sha256 of the catalogue; None: saved from a collection that was written to
    created: str  # ISO 8601, UTC
    sha256: dict[str, str]  # of each file


def write_snapshot(
    collection: Collection, destination: str | Path, catalogue_sha256: str | None = None
) -> SnapshotManifest:
    """Write a snapshot of the collection, which stays searchable and writable, and return its manifest.

    The search structure may lack the latest items; it catches up when the snapshot is opened.

    Args:
        catalogue_sha256: sha256 of the catalogue that the collection was built from, for the manifest.

    Raises:
        SnapshotError: the destination holds a snapshot, or cannot be written.
    """
    filesystem, folder = _filesystem(destination)
    try:
        if filesystem.get_file_info(f"{folder}/{MANIFEST}").type != fs.FileType.NotFound:
            raise SnapshotError(f"{destination} already holds a snapshot: choose another name, or delete it first")
        with collection.exclusive(), tempfile.TemporaryDirectory(dir=collection.folder, prefix=PART) as temporary:
            part = Path(temporary)
            collection.save(part / ANN)
            collection.store.copy(part / ITEMS)
            manifest: SnapshotManifest = {
                "format": FORMAT,
                "model": collection.model,
                "dimension": collection.dimension,
                "count": len(collection),
                "source": catalogue_sha256,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "sha256": {name: sha256(part / name) for name in FILES},
            }
            for name in FILES:
                filesystem.create_dir(str(Path(folder, name).parent), recursive=True)
                fs.copy_files(str(part / name), f"{folder}/{name}", fs.LocalFileSystem(), filesystem)
        with filesystem.open_output_stream(f"{folder}/{MANIFEST}") as out:
            out.write(json.dumps(manifest, indent=2).encode())
    except (OSError, sqlite3.OperationalError) as error:
        raise SnapshotError(
            f"{destination} cannot be written ({error}): the snapshot is incomplete, write it again"
        ) from error
    return manifest


def restore(source: str | Path, folder: Path, model: str | None = None) -> SnapshotManifest:
    """Restore a snapshot as the collection `folder`, completely or not at all, and return its manifest.

    Args:
        source: path or URI of the snapshot.
        folder: must not exist.
        model: fingerprint of the model that embeds the queries; None accepts any.

    Raises:
        SnapshotError: there is no snapshot, it belongs to another model, a file is damaged, or `folder` exists.
    """
    if folder.exists():
        raise SnapshotError(f"{folder} already exists: restore to another folder")
    filesystem, origin = _filesystem(source)
    manifest = read_manifest(source, model)
    with atomic_folder(folder) as part:
        (part / ANN).mkdir()
        for name, digest in manifest["sha256"].items():
            try:
                fs.copy_files(f"{origin}/{name}", str(part / name), filesystem, fs.LocalFileSystem())
            except OSError as error:
                raise SnapshotError(f"{source}/{name} cannot be read ({error}): use another snapshot") from error
            if sha256(part / name) != digest:
                raise SnapshotError(f"{source}/{name} is damaged (sha256 differs): use another snapshot")
        about: dict[str, str | int] = {
            "format": manifest["format"],
            "model": manifest["model"],
            "dimension": manifest["dimension"],
        }
        try:
            Store(part / ITEMS, about, create=False).close()
        except StoreError as error:
            raise SnapshotError(f"{source}/{MANIFEST} does not belong to its items ({error})") from error
    return manifest


def read_manifest(source: str | Path, model: str | None = None) -> SnapshotManifest:
    """Return a snapshot's manifest, without reading its items.

    Raises:
        SnapshotError: there is no snapshot, or it does not belong to `model`.
    """
    filesystem, folder = _filesystem(source)
    try:
        with filesystem.open_input_stream(f"{folder}/{MANIFEST}") as stream:
            manifest: SnapshotManifest = json.loads(stream.read())
    except FileNotFoundError as error:
        raise SnapshotError(f"{source} holds no complete index snapshot: run `lrem index build` first") from error
    except (OSError, ValueError) as error:
        raise SnapshotError(f"{source}/{MANIFEST} cannot be read ({error}): use another snapshot") from error
    complete = isinstance(manifest, dict) and {"format", "model", "dimension", "count", "sha256"} <= set(manifest)
    if not complete or manifest["format"] != FORMAT or set(manifest["sha256"]) != set(FILES):
        raise SnapshotError(f"{source} is not an index snapshot in format {FORMAT}: run `lrem index build` again")
    if model is not None and manifest["model"] != model:
        raise SnapshotError(
            f"{source} was built with model {manifest['model']}, queries use model {model}: "
            "run `lrem embed` and `lrem index build` with this model"
        )
    return manifest


def open_snapshot(source: str | Path, model: str | None = None) -> Collection:
    """Open a snapshot for searching. Its files are unlinked, so they disappear with the process.

    Raises:
        SnapshotError: as `restore`.
    """
    with tempfile.TemporaryDirectory(prefix="lrem-index-") as temporary:
        restore(source, Path(temporary, "index"), model)
        collection = Collection(Path(temporary, "index"))
        collection.wait(CLOSE_TIMEOUT_S)  # a rebuild would write its checkpoint here
    return collection


def _filesystem(address: str | Path) -> tuple[fs.FileSystem, str]:
    if "://" not in str(address):
        return fs.LocalFileSystem(), str(Path(address).absolute())
    try:
        filesystem, folder = fs.FileSystem.from_uri(str(address))
    except (ValueError, OSError) as error:
        raise SnapshotError(
            f"{address} is not an address that pyarrow supports ({error}): use s3://, gs://, file:// or a path"
        ) from error
    return filesystem, folder.rstrip("/")
