"""Known positives: pairs and judgements together, each once, whatever the order and the nulls."""

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from lrem.data.known_positives import KnownPositives, query_identity

KEY = st.integers(0, 2**63 - 1)
ROWS = st.lists(
    st.tuples(st.integers(0, 4), KEY, st.none() | st.lists(KEY | st.integers(0, 3), max_size=4)), max_size=9
)


def rendered(rows: list[tuple[int, int, list[int] | None]]) -> pa.Table:
    names = ("query_key", "item_key", "relevant_keys")
    schema = pa.schema(zip(names, (pa.int64(), pa.int64(), pa.list_(pa.int64())), strict=True))
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows], schema)


@given(ROWS)
def test_pairs_and_judgements_are_united(rows: list[tuple[int, int, list[int] | None]]) -> None:
    expected: dict[int, set[int]] = {}
    for query, item, relevant in rows:
        expected.setdefault(query, set()).update([item, *(relevant or [])])
    half = len(rows) // 2
    known = KnownPositives.of_rows(pa.concat_tables([rendered(rows[:half]), rendered(rows[half:])]))  # two chunks
    assert {query: known.of(query).tolist() for query in range(5)} == {
        query: sorted(expected.get(query, ())) for query in range(5)
    }
    assert known.items.dtype == known.queries.dtype == np.int64
    assert len(known.items) == sum(map(len, expected.values()))


def test_a_table_is_padded_to_the_longest() -> None:
    known = KnownPositives(np.array([5, 5, 7]), np.array([2, 1, 1]))
    assert known.table([7, 5, 6]).tolist() == [[1, -1], [1, 2], [-1, -1]]


def test_a_query_is_the_same_however_its_characters_are_encoded() -> None:
    spellings = ("Café  LED", "cafe\u0301 ｌｅｄ", "CAF\u00c9 l\u00aded")
    assert len({query_identity(text) for text in spellings}) == 1
    assert query_identity("cafe led") != query_identity("café led")
