"""Two-step facts, whose steps training shows only separately, and the gaps of the teacher."""

import json
from collections import Counter, defaultdict
from functools import cache

import pytest

from lrem.world import World, make_world
from lrem.world.meaning import token_count
from lrem.world.teacher import BUDGET

TRAIN, BRIDGED, TEST, COMPOSED, UNEXPLAINED = 4000, 2000, 100, 200, 0.3


@cache
def world() -> World:
    return make_world(5, 6000, TRAIN, TEST, BRIDGED, COMPOSED, UNEXPLAINED)


@cache
def rows() -> list[dict[str, str]]:
    """Each query with its origin and its oracle reasoning; `kind` is its kind of need."""
    parts = (world().queries.to_pylist(), world().origins.to_pylist(), world().gold.to_pylist())
    queries = [query | origin | gold for query, origin, gold in zip(*parts, strict=True)]
    return [row | {"kind": row["wording"].rpartition(" ")[0]} for row in queries]


def train() -> list[dict[str, str]]:
    return [row for row in rows() if row["split"] == "train"]


def composed() -> list[dict[str, str]]:
    return [row for row in rows() if row["slice"] == "composition"]


@cache
def facts() -> dict[str, str]:
    return {row["query_id"]: row["fact"] for row in rows()}


def test_sizes_and_slices() -> None:
    slices = Counter(row["slice"] for row in rows())
    assert slices == {None: TRAIN + BRIDGED, "interpolation": TEST, "composition": COMPOSED}
    assert {row["category"] for row in composed()} == {"knowledge"}
    assert len({row["query"] for row in rows()}) == len(rows())


def test_training_never_has_a_subject_with_the_need_of_the_test() -> None:
    trained = {(row["fact"], row["kind"]) for row in train()}
    assert not trained & {(row["fact"], row["kind"]) for row in composed()}


@pytest.mark.parametrize("key", ["fact", "wording"])
def test_training_has_every_part(key: str) -> None:
    assert {row[key] for row in composed()} <= {row[key] for row in train()}
    constraints = {(row["kind"], row["constraint"]) for row in train()}
    assert {(row["kind"], row["constraint"]) for row in composed()} <= constraints


def test_training_has_both_steps_separately() -> None:
    """The first step occurs with another kind of need, the second in a query that names it directly."""
    first = defaultdict(set)
    for row in train():
        first[row["fact"]].add(row["reasoning"].split(", ")[0])
    direct = {row["fact"] for row in train()}
    for row in composed():
        via, *goods = row["reasoning"].split(", ")
        assert via in first[row["fact"]], row["query"]
        assert via not in row["query"]
        family, kind = row["kind"].split()[1:]
        assert {f"{kind}:{via}", f"{family} {kind}:{via}"} & direct, row["query"]
        assert goods


def test_relevance_is_that_of_the_second_step() -> None:
    """A wardrobe for oslo means the same as one for a cold climate, under the same constraint."""
    meanings = {(row["kind"], row["fact"].partition(":")[2], row["constraint"]): row["meaning"] for row in train()}
    compared = 0
    for row in composed():
        via = row["reasoning"].split(", ")[0]
        direct = meanings.get((row["kind"], via, row["constraint"]))
        if direct:
            assert json.loads(direct) == json.loads(row["meaning"])
            compared += 1
    assert compared > 10


def test_the_teacher_skips_exactly_the_facts_it_does_not_know() -> None:
    taught = set(world().teacher["query_id"].to_pylist())
    assert {row["query_id"] for row in train() if row["explained"]} == taught
    by_kind = defaultdict(set)
    for row in train():
        by_kind[row["fact"].partition(":")[0]].add((row["fact"], row["explained"]))
    for kind, facts_of_kind in by_kind.items():
        assert len(facts_of_kind) == len({fact for fact, _ in facts_of_kind}), (
            "a fact is explained or not, whatever the query"
        )
        unknown = sum(not explained for _, explained in facts_of_kind)
        assert unknown == (0 if kind == "easy" else round(len(facts_of_kind) * UNEXPLAINED)), kind


def test_the_teacher_always_has_the_first_step_within_the_budget() -> None:
    gold = dict(zip(*(world().gold[name].to_pylist() for name in ("query_id", "reasoning")), strict=True))
    subjects = {row["fact"] for row in composed()}
    taught = [row for row in world().teacher.to_pylist() if facts()[row["query_id"]] in subjects]
    assert len(taught) > 500
    for row in taught:
        assert row["reasoning"].split(", ")[0] == gold[row["query_id"]].split(", ")[0]
        assert token_count(row["reasoning"]) <= BUDGET


def test_two_step_facts_leave_the_rest_of_the_world_unchanged() -> None:
    plain, extended = make_world(1, 900, 400, 50), make_world(1, 900, 400, 50, 200, 0)
    assert extended.items.equals(plain.items)
    assert extended.queries.slice(0, 400)["query"].to_pylist() == plain.queries.slice(0, 400)["query"].to_pylist()


def test_too_many_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="100000 bridged test queries"):
        make_world(1, 6000, 4000, 50, 500, 100_000)
