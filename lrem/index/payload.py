"""What an item may be: its id, its vector, and a payload that comes back from JSON as it went in.

Knows JSON; does not know where items are kept.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrem.index.filters import too_large

MAX_ID = 512  # characters


class ItemError(ValueError):
    """An item that cannot be written; the message names it and the remedy."""


def checked(ids: Sequence[Any], payloads: Sequence[Any], vectors: np.ndarray, dimension: int) -> list[str]:
    """The payloads of items as JSON. vectors: [N, dimension] float32 of unit length.

    Raises:
        ItemError: one of them cannot be kept.
    """
    if not len(ids) == len(payloads) == len(vectors):
        raise ItemError(f"{len(ids)} ids, {len(payloads)} payloads and {len(vectors)} vectors: send one of each")
    if vectors.shape != (len(ids), dimension):
        raise ItemError(f"vectors of shape {list(vectors.shape)}: the collection keeps {dimension} numbers each")
    lengths = np.linalg.norm(vectors, axis=1)
    wrong = np.flatnonzero(~np.isclose(lengths, 1, atol=1e-3))
    if len(wrong):
        raise ItemError(f"item {ids[wrong[0]]!r:.60}: its vector has length {lengths[wrong[0]]:.3f}, not 1")
    return [as_json(item_id, payload) for item_id, payload in zip(ids, payloads, strict=True)]


def as_json(item_id: Any, payload: Any) -> str:
    """The payload as JSON.

    Raises:
        ItemError: the id is no string of 1 to 512 characters, or the payload no JSON object, or a number in it could
            not be filtered by exactly.
    """
    if not isinstance(item_id, str) or not 0 < len(item_id) <= MAX_ID:
        raise ItemError(f"item_id {item_id!r:.60}: a string of 1 to {MAX_ID} characters is needed")
    try:
        item_id.encode()
        if not isinstance(payload, Mapping):
            raise TypeError("it is not an object")
        for name, value in payload.items():
            if any(too_large(one) for one in (value if isinstance(value, list | tuple) else (value,))):
                raise ValueError(f"'{name}' is a whole number beyond 2^53: send it as a string")
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError) as error:
        raise ItemError(f"item {item_id!a:.60}: its id or payload cannot be kept as JSON ({error})") from error
    return text


def storable(ids: Sequence[str]) -> list[str]:
    """Each id once; none with half a surrogate pair, which no item can have."""
    return [item_id for item_id in dict.fromkeys(ids) if not any("\ud800" <= c <= "\udfff" for c in item_id)]
