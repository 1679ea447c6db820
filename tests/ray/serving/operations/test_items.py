"""Writing, reading and deleting items."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from lrem.index.shard import owner
from tests.ray.serving.operations.helpers import bulk, count, put, read_live_record
from tests.serving import TITLES, Served, assert_error, search


def test_a_written_item_is_searchable_at_once(served: Served) -> None:
    before = count(served)
    item = {"item_id": "new/1", "title": "purple velvet armchair", "price": 3.5, "stock": {"here": 2}}
    assert put(served, item, {"item_id": "p0", "title": "red wool coat", "sale": True}) == {"written": 2, "new": 1}
    assert count(served) == before + 1
    assert served.http.get("/v1/items/new/1").json() == {
        "item_id": "new/1",
        "payload": {key: value for key, value in item.items() if key != "item_id"},
    }
    [hit] = search(served, query="armchair", filter={"price": 3.5}, reason="never")["results"][0]["items"]
    expected = served.embedder.encode_items([item["title"]])[0] @ served.embedder.encode_queries(["armchair"], [""])[0]
    assert hit["item_id"] == "new/1"
    assert hit["score"] == pytest.approx(float(expected), abs=1e-4)
    assert count(served, {"sale": True}) == 1
    assert served.http.delete("/v1/items/new/1").json() == {"deleted": 1}
    assert served.http.delete("/v1/items/new/1").json() == {"deleted": 0}
    assert_error(served.http.get("/v1/items/new/1"), 404, "there is no item 'new/1'")
    assert count(served) == before


def test_token_ids_are_refused_unless_allowed(served: Served) -> None:
    response = served.http.post("/v1/embeddings", json={"input": [5, 6]})
    assert_error(response, 422, "check_embedding_ctx_length=False")


def test_a_filter_is_judged_by_all_shards_together(served: Served) -> None:
    ids = [next(f"mixed{i}" for i in range(99) if owner(f"mixed{i}", 2) == shard) for shard in range(2)]
    texts = {"item_id": ids[0], "title": "oak desk", "size": "on request"}
    assert put(served, texts)["written"] == 1
    refused = served.http.post("/v1/items/count", json={"filter": {"size": {"$lt": 5}}})
    assert_error(refused, 422, "filter.size: its values are texts, and $lt compares numbers")
    assert put(served, texts | {"item_id": ids[1], "size": 3})["written"] == 1
    assert count(served, {"size": {"$lt": 5}}) == 1
    [hits] = [result["items"] for result in search(served, query="desk", filter={"size": {"$lt": 5}})["results"]]
    assert [hit["item_id"] for hit in hits] == [ids[1]]
    assert served.http.post("/v1/items/delete", json={"item_ids": ids}).json() == {"deleted": 2}


def test_a_bulk_write_reports_every_line(served: Served) -> None:
    lines = [
        json.dumps({"item_id": "b1", "title": "garden hose"}),
        "{",
        json.dumps({"item_id": "b2"}),
        json.dumps({"item_id": "b3", "title": "  "}),
        '{"item_id": "b4", "title": "rake", "price": NaN}',
        json.dumps({"item_id": "b1", "title": "garden hose, again"}),
    ]
    headers = {"content-type": "application/x-ndjson"}
    response = served.http.post("/v1/items/bulk", content="\n".join(lines) + "\n\n", headers=headers).json()
    assert_error(served.http.post("/v1/items/bulk", content=lines[0]), 415, "send application/x-ndjson")
    assert (response["written"], response["failed"]) == (2, 4)
    assert [(row["line"], row["item_id"]) for row in response["rows"]] == [
        (1, "b1"),
        (2, None),
        (3, None),
        (4, None),
        (5, None),
        (6, "b1"),
    ]
    errors = [row["error"] for row in response["rows"]]
    assert errors[0] is errors[5] is None
    for fact, error in zip(
        ("not valid JSON", "title: Field required", "title: is blank", "JSON"), errors[1:5], strict=True
    ):
        assert fact in error
    assert served.http.get("/v1/items/b1").json()["payload"]["title"] == "garden hose, again"
    assert served.http.post("/v1/items/delete", json={"item_ids": ["b1", "gone"]}).json() == {"deleted": 1}


@contextmanager
def refuse_inserts(shard: int) -> Iterator[None]:
    """Make a shard's file refuse new items, as on a full disk."""
    store = sqlite3.connect(Path(read_live_record().folder) / f"shard-{shard}-of-2" / "items.sqlite", timeout=30)
    store.execute("CREATE TRIGGER full BEFORE INSERT ON items BEGIN SELECT RAISE(ABORT, 'the disk is full'); END")
    try:
        yield
    finally:
        store.execute("DROP TRIGGER full")
        store.close()


def test_a_bulk_write_reports_the_lines_of_a_shard_that_fails(served: Served) -> None:
    ids = [f"h{i}" for i in range(8)]
    lost = [item_id for item_id in ids if owner(item_id, 2) == 1]
    assert 0 < len(lost) < len(ids)
    with refuse_inserts(1):
        response = bulk(served, [*ids, ids[0]]).json()
        assert_error(bulk(served, lost), 503, "the disk is full")
        whole = served.http.put("/v1/items", json={"items": [{"item_id": i, "title": "hose"} for i in ids]})
        assert_error(whole, 503, "shard 1")
    assert {row["item_id"] for row in response["rows"] if row["error"]} == set(lost)
    assert all("shard 1" in row["error"] for row in response["rows"] if row["error"])
    assert response["written"] == sum(row["error"] is None for row in response["rows"]) == 9 - response["failed"]
    assert [i for i in ids if served.http.get(f"/v1/items/{i}").status_code == 404] == lost
    repeated = bulk(served, ids).json()
    assert (repeated["written"], repeated["failed"]) == (8, 0)
    assert served.http.post("/v1/items/delete", json={"item_ids": ids}).json() == {"deleted": 8}


def test_scrolling_returns_every_item_once(served: Served) -> None:
    ids, after = [], ""
    while after is not None:
        page = served.http.get("/v1/items", params={"limit": 20, "after": after}).json()
        ids += [item["item_id"] for item in page["items"]]
        after = page["after"]
    assert ids == sorted(f"p{i}" for i in range(len(TITLES)))
