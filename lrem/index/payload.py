"""Items as they enter and leave the index: limits on ids, vectors and payloads, and search hits."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lrem.errors import ItemError
from lrem.index.filters import too_large

MAX_ID = 512  # characters
MAX_FIELDS, MAX_DEPTH, MAX_BYTES = 256, 16, 65_536  # of a payload, which is kept in memory and returned with every hit


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
        if not isinstance(payload, Mapping):
            raise TypeError("the payload is not an object")
        if len(payload) > MAX_FIELDS or _deeper(payload, MAX_DEPTH):
            raise ValueError(f"at most {MAX_FIELDS} fields, nested {MAX_DEPTH} deep, are allowed")
        for name, value in payload.items():
            if any(too_large(element) for element in (value if isinstance(value, list | tuple) else (value,))):
                raise ValueError(f"'{name}' is a whole number beyond 2^53: send it as a string")
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        if len(text.encode()) > MAX_BYTES:
            raise ValueError(f"at most {MAX_BYTES} bytes are allowed")
    except (TypeError, ValueError) as error:
        raise ItemError(f"item {item_id!a:.60}: its id or payload cannot be stored as JSON ({error})") from error
    return text


def last_positions(ids: Sequence[str]) -> list[int]:
    """Return the last position of each id, in the order of their first positions.

    >>> last_positions(["a", "b", "a"])
    [2, 1]
    """
    return list({item_id: i for i, item_id in enumerate(ids)}.values())


def _deeper(value: Any, levels: int) -> bool:
    """Return whether a value is nested deeper than `levels`."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return False
    return levels == 0 or any(_deeper(part, levels - 1) for part in value)


def valid_ids(ids: Sequence[str]) -> list[str]:
    """Return each id once, without those that no item can have (with half a surrogate pair)."""
    return [item_id for item_id in dict.fromkeys(ids) if not any("\ud800" <= c <= "\udfff" for c in item_id)]
