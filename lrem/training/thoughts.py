"""The thoughts that stage 1 embeds its queries with: the teacher's, the model's own, none, or corrupted ones.

A model that only ever embeds the teacher's thoughts in training meets its own for the first time in serving (exposure
bias; the remedy is scheduled sampling, Bengio et al., arXiv 1506.03099). So each row draws the kind of its thought. SFT
trains on the teacher's alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lrem.config import ThoughtsConfig
from lrem.data.keywords import join_phrases, split_phrases
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.template import Renderer
from lrem.modeling.thinking import generate_reasonings
from lrem.training.distributed import max_over_ranks

KINDS = ("teacher", "own", "empty", "corrupted")
PROMPTS = 64  # generated together
Row = Mapping[str, Any]  # with `query_ids`, `start`, `query_key`, perhaps `scored`, see cold_start_step.collate


def teacher_thought(row: Row) -> list[int]:
    """Return the ids of a row's thought, between `<think>` and `</think>`.

    >>> teacher_thought({"query_ids": [5, 6, 0, 7, 8, 1, 2], "start": 2})
    [7, 8]
    """
    return list(row["query_ids"][row["start"] + 1 : -2])


def draw_kinds(rows: Sequence[Row], mix: ThoughtsConfig, random: np.random.Generator) -> list[str]:
    """Draw one of KINDS for each row; where the teacher wrote nothing, the thought stays the teacher's empty one.

    From such rows the model learns when not to think. An RL pair (`scored` is False) had no teacher: it is embedded
    with an empty thought and has no SFT.

    >>> row = {"query_ids": [5, 0, 7, 1, 2], "start": 1}
    >>> easy = row | {"query_ids": [5, 0, 1, 2]}
    >>> mix = ThoughtsConfig(teacher=0, own=1, empty=0, corrupted=0)
    >>> draw_kinds([row, easy, easy | {"scored": False}], mix, np.random.default_rng(0))
    ['own', 'teacher', 'empty']
    """
    shares = np.array([getattr(mix, kind) for kind in KINDS])
    drawn = random.choice(KINDS, size=len(rows), p=shares / shares.sum())
    fixed = ["teacher" if row.get("scored", True) else "empty" for row in rows]
    return [str(kind) if teacher_thought(row) else rest for row, kind, rest in zip(rows, drawn, fixed, strict=True)]


def corrupt(thought: str, other: str | None, random: np.random.Generator) -> str:
    """Return a thought with a phrase dropped, with a phrase repeated, or `other`, if there is one; each as likely.

    >>> [corrupt("wool, coat", "sandals", np.random.default_rng(seed)) for seed in (11, 1, 2)]
    ['coat', 'wool, coat, coat', 'sandals']
    """
    phrases = split_phrases(thought) or [thought]
    way = random.integers(2 if other is None else 3)
    if other is not None and way == 2:
        return other
    chosen = random.integers(len(phrases))
    copies = [phrases[chosen]] * (2 * way)  # none, or two
    return join_phrases([*phrases[:chosen], *copies, *phrases[chosen + 1 :]])


def replace_thoughts(
    rows: Sequence[Row],
    kinds: Sequence[str],
    own: Mapping[int, str],
    renderer: Renderer,
    random: np.random.Generator,
) -> list[dict[str, Any]]:
    """Return the rows with the thoughts of their kinds in `query_ids`; `scored` is True where it is the teacher's.

    Args:
        own: the model's own thought of each row of that kind, by the row's number.
    """
    replaced = []
    for i, (row, kind) in enumerate(zip(rows, kinds, strict=True)):
        if kind == "teacher":
            replaced.append({**row, "scored": True})
            continue
        if kind == "own":
            ids = renderer.reasoning_ids(own[i])  # as `query_ids` reads a thought in serving
        elif kind == "empty":
            ids = []
        else:
            others = [other for other in rows if other["query_key"] != row["query_key"] and teacher_thought(other)]
            other = renderer.reasoning_text(teacher_thought(others[random.integers(len(others))])) if others else None
            ids = renderer.reasoning_ids(corrupt(renderer.reasoning_text(teacher_thought(row)), other, random))
        query_ids = [*row["query_ids"][: row["start"]], *renderer.completion(ids)]
        replaced.append({**row, "query_ids": query_ids, "scored": False})
    return replaced


def write_thoughts(
    model: ReasoningEmbedder, prompts: Sequence[list[int]], seed: int | None = None, in_step: bool = False
) -> list[str]:
    """Write one thought for each prompt with the present weights; greedy without a seed.

    Args:
        prompts: see `Renderer.thinking_prompt`.
        in_step: every rank calls, and takes equally many forwards whatever its prompts: ZeRO-3 gathers weights from
            all ranks in each.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    batches = [order[start : start + PROMPTS] for start in range(0, len(order), PROMPTS)]
    count = max_over_ranks(len(batches), model.device) if in_step else len(batches)
    thoughts = [""] * len(prompts)
    for number in range(count):
        chosen = batches[number] if number < len(batches) else []
        rows = [prompts[i] for i in chosen] or [[model.renderer.think]]  # a stand-in for a rank that has finished
        written = generate_reasonings(model.lm, model.renderer, rows, None if seed is None else seed + number, in_step)
        for i, text in zip(chosen, written, strict=False):
            thoughts[i] = text
    return thoughts
