"""A teacher that is mostly right: the perfect keywords, some missing, sometimes one too many.

Knows facts and meanings; does not know wordings or items.
"""

from random import Random

from lrem.world.facts import Facts
from lrem.world.meaning import Meaning, Wanted, token_count

# How a real teacher errs after judging and cutting: it forgets more than it invents.
MISSING = 0.15  # chance that a true keyword is left out
SUPERFLUOUS = 0.20  # chance that a reasoning has one plausible but wrong keyword
BUDGET = 16  # tokens of a reasoning; the paper's l


def imperfect(meaning: Meaning, facts: Facts, rng: Random) -> str:
    """The teacher's reasoning: table order, never empty, a wrong keyword only last and within the budget.

    The first step of two is always there: a teacher who missed it would have missed the goods too.
    """
    goods = [wanted.keyword for wanted in meaning.any_of]
    kept = [keyword for keyword in goods if rng.random() >= MISSING] or [rng.choice(goods)]
    kept = [meaning.via, *kept] if meaning.via else kept
    if rng.random() < SUPERFLUOUS:
        near = [wanted.keyword for wanted in neighbours(rng.choice(meaning.any_of), facts)]
        wrong = [
            keyword
            for keyword in near
            if keyword not in meaning.keywords and token_count(", ".join([*kept, keyword])) <= BUDGET
        ]
        kept += rng.sample(wrong, min(1, len(wrong)))
    return ", ".join(kept)


def neighbours(wanted: Wanted, facts: Facts) -> list[Wanted]:
    """What is easily confused with `wanted`: another brand, another value, or a type on the next shelf."""
    if wanted.where:
        ((field, value),) = wanted.where
        known = facts.brands_of(wanted.type).tier if field == "brand" else facts.dimensions[field].values
        return [Wanted(wanted.type, ((field, other),)) for other in known if other != value]
    department = facts.types[wanted.type].department
    shelf = [name for name, entry in facts.types.items() if entry.department == department]
    return [Wanted(name) for name in shelf if name != wanted.type]
