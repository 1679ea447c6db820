"""A teacher that is mostly right: the oracle's keywords, with some missing and sometimes a wrong one."""

from random import Random

from lrem.world.facts import Facts
from lrem.world.meaning import Meaning, TargetProduct, token_count

# Modelled on a real teacher whose answers were judged and truncated: it forgets more than it invents.
MISSING = 0.15  # probability that a correct keyword is left out
SUPERFLUOUS = 0.20  # probability that a reasoning has one plausible but wrong keyword
BUDGET = 16  # tokens per reasoning; l in the paper


def imperfect_reasoning(meaning: Meaning, facts: Facts, rng: Random) -> str:
    """Return the teacher's reasoning: keywords in table order, never empty; a wrong one comes last, within the budget.

    The first step of a two-step fact is never missing: a teacher without it could not know the second.
    """
    correct = [target.keyword for target in meaning.any_of]
    kept = [keyword for keyword in correct if rng.random() >= MISSING] or [rng.choice(correct)]
    kept = [meaning.via, *kept] if meaning.via else kept
    if rng.random() < SUPERFLUOUS:
        candidates = [target.keyword for target in neighbours(rng.choice(meaning.any_of), facts)]
        wrong = [
            keyword
            for keyword in candidates
            if keyword not in meaning.keywords and token_count(", ".join([*kept, keyword])) <= BUDGET
        ]
        kept += rng.sample(wrong, min(1, len(wrong)))
    return ", ".join(kept)


def neighbours(target: TargetProduct, facts: Facts) -> list[TargetProduct]:
    """Return what is easily confused with `target`: another brand, another value, or a type of the same department."""
    if target.where:
        ((field, value),) = target.where
        values = facts.brands_of(target.type).tier if field == "brand" else facts.dimensions[field].values
        return [TargetProduct(target.type, ((field, other),)) for other in values if other != value]
    department = facts.types[target.type].department
    types = [name for name, entry in facts.types.items() if entry.department == department]
    return [TargetProduct(name) for name in types if name != target.type]
