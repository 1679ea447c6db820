"""Items as they enter and leave the index: limits on ids, vectors and payloads, and search hits."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from lrem.data.catalogue_limits import MAX_ID
from lrem.data.payloads import encode
from lrem.errors import ItemError


class Hit(NamedTuple):
    """One result of a search; `score` is the cosine."""

    item_id: str
    score: float
    payload: dict[str, Any]


class Page(NamedTuple):
    """One page of a scroll: (item_id, payload) of each item, and the `after` of the next page, None at the end."""

    items: list[tuple[str, dict[str, Any]]]
    after: str | None


def encode_items(ids: Sequence[Any], payloads: Sequence[Any], vectors: np.ndarray, dimension: int) -> list[str]:
    """Validate items, and return their payloads as JSON. vectors: [N, dimension] float32 of unit length.

    Raises:
        ItemError: an id, payload or vector is invalid.
    """
    if not len(ids) == len(payloads) == len(vectors):
        raise ItemError(
            f"{len(ids)} ids, {len(payloads)} payloads and {len(vectors)} vectors: send one of each per item"
        )
    if vectors.shape != (len(ids), dimension):
        raise ItemError(f"vectors of shape {list(vectors.shape)}: the collection has {dimension} dimensions")
    lengths = np.linalg.norm(vectors, axis=1)
    invalid = np.flatnonzero(~np.isclose(lengths, 1, atol=1e-3))
    if len(invalid):
        raise ItemError(f"item {ids[invalid[0]]!r:.60}: its vector has length {lengths[invalid[0]]:.3f}, not 1")
    return [encode_payload(item_id, payload) for item_id, payload in zip(ids, payloads, strict=True)]


def encode_payload(item_id: Any, payload: Any) -> str:
    """Validate an item's id and payload, and return the payload as JSON.

    Raises:
        ItemError: the id is not a string of 1 to 512 characters; or the payload is not a JSON object, is too large, or
            contains a whole number that filters could not match exactly.
    """
    if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_ID:
        raise ItemError(f"item_id {item_id!r:.60} must be a string of 1 to {MAX_ID} characters")
    try:
        item_id.encode()
        return encode(payload)
    except (TypeError, ValueError) as error:
        raise ItemError(f"item {item_id!a:.60}: its id or payload cannot be stored as JSON ({error})") from error


def last_positions(ids: Sequence[str]) -> list[int]:
    """Return the last position of each id, in the order of their first positions.

    >>> last_positions(["a", "b", "a"])
    [2, 1]
    """
    return list({item_id: i for i, item_id in enumerate(ids)}.values())


def valid_ids(ids: Sequence[str]) -> list[str]:
    """Return each id once, without those that no item can have (with half a surrogate pair)."""
    return [item_id for item_id in dict.fromkeys(ids) if not any("\ud800" <= c <= "\udfff" for c in item_id)]
