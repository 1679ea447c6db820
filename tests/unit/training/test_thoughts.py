"""The thoughts of stage 1: drawn with their shares, repeatable, corrupted as described, equal on every rank."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from lrem.config import ColdStartConfig, ThoughtsConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.training.thoughts import corrupt, draw_kinds, replace_thoughts, write_thoughts
from tests.unit.training.cold_start_batch import QUERIES, REASONINGS, make_rows
from tests.unit.training.two_ranks import TwoRanks

MIX = ThoughtsConfig(teacher=0.5, own=0.25, empty=0.15, corrupted=0.1)


def test_kinds_have_their_shares_and_easy_rows_keep_theirs(tiny: ReasoningEmbedder) -> None:
    rows, random = make_rows(tiny), np.random.default_rng(3)
    drawn = [draw_kinds(rows, MIX, random) for _ in range(1000)]
    hard = [i for i, reasoning in enumerate(REASONINGS) if reasoning]
    shares = Counter(kinds[i] for kinds in drawn for i in hard)
    for kind in ("teacher", "own", "empty", "corrupted"):
        assert shares[kind] / shares.total() == pytest.approx(getattr(MIX, kind), abs=0.02), kind
    assert {kinds[i] for kinds in drawn for i in range(7) if i not in hard} == {"teacher"}


def test_draws_repeat_with_their_seed(tiny: ReasoningEmbedder) -> None:
    rows = make_rows(tiny)

    def draw(seed: list[int]) -> list[Any]:
        random = np.random.default_rng(seed)
        kinds = draw_kinds(rows, MIX, random)
        own = dict.fromkeys(range(7), "silk")
        return [row["query_ids"] for row in replace_thoughts(rows, kinds, own, tiny.renderer, random)]

    assert draw([0, 4, 1]) == draw([0, 4, 1])
    assert len({str(draw([0, 4, rank])) for rank in range(8)}) > 1


def test_each_kind_of_thought(tiny: ReasoningEmbedder) -> None:
    """Rows 0, 1, 3, 4 get one each; only the teacher's is scored."""
    renderer, kinds = tiny.renderer, ["teacher", "own", "teacher", "empty", "corrupted", "teacher", "teacher"]
    rows = make_rows(tiny)
    replaced = replace_thoughts(rows, kinds, {1: "red silk"}, renderer, np.random.default_rng(0))
    assert [row["scored"] for row in replaced] == [kind == "teacher" for kind in kinds]
    expected = {0: REASONINGS[0], 1: "red silk", 2: "", 3: "", 5: "", 6: REASONINGS[6]}
    for i, reasoning in expected.items():
        assert replaced[i]["query_ids"] == renderer.query_ids(QUERIES[i], reasoning), i
    assert replaced[4]["query_ids"] != rows[4]["query_ids"]
    assert [row["item_ids"] for row in replaced] == [row["item_ids"] for row in rows]


def test_shares_of_thirds_can_be_drawn(tiny: ReasoningEmbedder) -> None:
    mix = ThoughtsConfig(teacher=0.3333333, own=0.3333333, empty=0, corrupted=0.3333333)
    kinds = draw_kinds(make_rows(tiny) * 20, mix, np.random.default_rng(0))
    assert {*kinds} == {"teacher", "own", "corrupted"}


def test_a_number_with_a_comma_is_one_phrase() -> None:
    corrupted = {corrupt("12,000 btu", None, np.random.default_rng(seed)) for seed in range(20)}
    assert corrupted == {"", "12,000 btu, 12,000 btu"}
    assert corrupt(",", None, np.random.default_rng(0)) in ("", ",, ,")  # a comma alone, from a user's file


def test_corrupted_thoughts() -> None:
    random = np.random.default_rng(0)
    seen = Counter(corrupt("wool, red coat", "sandals", random) for _ in range(600))
    dropped, repeated = ("wool", "red coat"), ("wool, wool, red coat", "wool, red coat, red coat")
    assert {*seen} == {*dropped, *repeated, "sandals"}
    for ways in (dropped, repeated, ("sandals",)):
        assert sum(seen[way] for way in ways) == pytest.approx(200, abs=45), ways
    assert "sandals" not in {corrupt("wool, red coat", None, random) for _ in range(50)}


def prompts_of(model: ReasoningEmbedder) -> list[list[int]]:
    return [model.renderer.thinking_prompt(query) for query in QUERIES]


def test_samples_repeat_with_their_seed_and_leave_the_random_state(tiny: ReasoningEmbedder) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    written = write_thoughts(tiny, prompts_of(tiny), seed=5)
    assert torch.rand(1) == expected
    assert written == write_thoughts(tiny, prompts_of(tiny), seed=5) != write_thoughts(tiny, prompts_of(tiny), seed=6)
    assert all(len(tiny.renderer.reasoning_ids(text)) <= tiny.template.budget for text in written)


def test_greedy_thoughts_are_those_of_reason(tiny: ReasoningEmbedder) -> None:
    assert write_thoughts(tiny, prompts_of(tiny)) == tiny.reason(QUERIES)
    assert write_thoughts(tiny, []) == []


def write_in_step(rank: int, folder: str) -> tuple[list[str], int]:
    """Let rank 0 write on all queries and rank 1 on none; return the thoughts, and rank 1's forwards less rank 0's."""
    import torch.distributed as dist

    model, forwards = ReasoningEmbedder.load(folder).eval(), torch.zeros(1)

    def count(*_: object) -> None:
        forwards.add_(1)

    model.lm.base_model.register_forward_hook(count)
    texts = write_thoughts(model, prompts_of(model) if rank == 0 else [], seed=5, in_step=True)
    counts = [torch.zeros(1), torch.zeros(1)]
    dist.all_gather(counts, forwards)
    return texts, int(counts[1] - counts[0])


def test_ranks_write_in_step(two_ranks: TwoRanks, tiny_folder: Path, tiny: ReasoningEmbedder) -> None:
    """A rank with nothing to write takes as many forwards: under ZeRO-3 each gathers weights from all ranks."""
    texts, difference = two_ranks.run(write_in_step, str(tiny_folder))
    assert texts == write_thoughts(tiny, prompts_of(tiny), seed=5)
    assert difference == 0


@pytest.mark.parametrize(
    ("settings", "fact"),
    [
        ({"thoughts": {"own": 0.5}}, "sum to 1.25"),
        ({"thought_positives": True}, "objective: direct"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], fact: str) -> None:
    with pytest.raises(ValidationError, match=fact):
        ColdStartConfig.model_validate(settings)
