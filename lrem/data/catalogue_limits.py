"""What an item must satisfy to be searched: checked where a catalogue is read first, before anything is made of it."""

import json
import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lrem.data.payloads import MAX_BYTES, MAX_FIELDS, encode, large_integers_as_text, to_json, to_payloads
from lrem.errors import DataError

MAX_ID = 512  # characters
MAX_TITLE = 2000  # characters
CONTROL_TOKENS = ("<think>", "</think>", "<emb>")  # of the models: texts are read without them
CONTROL = re.compile("|".join(CONTROL_TOKENS))
LISTED = 20  # bad items in a message
ESCAPED = 6  # bytes that JSON needs at most for a byte of text


def is_blank(title: str) -> bool:
    """Return True if a title has no text that a model could embed.

    >>> is_blank(" <emb>"), is_blank("tea <emb>")
    (True, False)
    """
    return not CONTROL.sub(" ", title).strip()


def require_usable(items: pa.Table, path: object) -> None:
    """Check every item of a catalogue: `item_id` and `title` are text, all other columns payload.

    Raises:
        DataError: some cannot be indexed; the message counts them and names the first LISTED.
    """
    problems = list(_problems(items))
    if not problems:
        return
    named = "; ".join(f"item '{items['item_id'][row]!s:.60}' (row {row}): {text}" for row, text in problems[:LISTED])
    more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
    count = "1 item" if len(problems) == 1 else f"{len(problems)} items"
    raise DataError(f"{path}: {count} cannot be indexed: {named}{more}: fill, shorten or drop them")


def _problems(items: pa.Table) -> Iterator[tuple[int, str]]:
    """Yield (row, what is wrong), in the order of the rows."""
    ids, titles = items["item_id"], items["title"]
    id_lengths, title_lengths = pc.utf8_length(ids).to_numpy(), pc.utf8_length(titles).to_numpy()
    marked = pc.match_substring_regex(titles, CONTROL.pattern).to_numpy()
    blank = pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(titles)), 0).to_numpy()
    heavy = _longest_payloads(items) > MAX_BYTES
    if items.num_columns > MAX_FIELDS:
        filled = sum(pc.is_valid(column).to_numpy().astype(np.int64) for column in items.columns)
        heavy |= filled > MAX_FIELDS
    exact = large_integers_as_text(items) if heavy.any() else items
    suspects = (id_lengths == 0) | (id_lengths > MAX_ID) | (title_lengths > MAX_TITLE) | marked | blank | heavy
    for row in np.flatnonzero(suspects).tolist():
        title = titles[row].as_py()
        if not 0 < id_lengths[row] <= MAX_ID:
            yield row, f"its id has {id_lengths[row]} characters, 1 to {MAX_ID} are allowed"
        elif is_blank(title):
            yield row, "its title is empty"
        elif len(title) > MAX_TITLE:
            yield row, f"its title has {len(title)} characters, at most {MAX_TITLE} are allowed"
        elif heavy[row] and (problem := _payload_problem(exact.slice(row, 1))):
            yield row, problem


def _payload_problem(row: pa.Table) -> str | None:
    try:
        encode(to_payloads(row.drop_columns(["item_id"]))[0])
    except ValueError as error:
        return f"its payload: {error}"
    return None


def _longest_payloads(items: pa.Table) -> np.ndarray:
    """Return the most bytes that each row's payload can have as JSON, [N] int64. The columns have plain types."""
    longest = np.zeros(items.num_rows, np.int64)
    for name in items.column_names:
        longest += ESCAPED * (_lengths(items[name].combine_chunks()) + len(name.encode()) + 2)
    return longest


def _lengths(column: pa.Array) -> np.ndarray:
    """Return [N] int64, at least a sixth of the bytes of each value as JSON; 0 for null."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        lengths = pc.binary_length(column)
    elif pa.types.is_nested(kind):
        texts = (json.dumps(to_json(value), ensure_ascii=False) for value in column.to_pylist(maps_as_pydicts="strict"))
        return np.array([len(text.encode()) for text in texts], np.int64)
    else:  # numbers, truth values, dates
        lengths = pc.if_else(pc.is_valid(column), 8, 0)
    return pc.fill_null(lengths, 0).to_numpy(zero_copy_only=False).astype(np.int64)
