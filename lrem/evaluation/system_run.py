"""One system's run, with what it cost."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from lrem.evaluation.metrics import Run

Result = TypeVar("Result")


class SystemRun(NamedTuple):
    """A run, the seconds that all its queries took together, and the share of queries with a reasoning.

    seconds: None if the time would not reflect the cost of a query. reasoned: None for systems without reasoning.
    """

    run: Run
    seconds: float | None = None
    reasoned: float | None = None

    def cost(self) -> dict[str, float]:
        """Return `ms_per_query` (all queries submitted at once) and `thinks`, the share; unknown values are left out.

        >>> SystemRun({"a": [], "b": []}, seconds=0.5, reasoned=0.25).cost()
        {'ms_per_query': 250.0, 'thinks': 0.25}
        """
        cost = {} if self.seconds is None else {"ms_per_query": round(1000 * self.seconds / max(1, len(self.run)), 2)}
        return cost if self.reasoned is None else cost | {"thinks": self.reasoned}


def reasoned_share(reasonings: Sequence[str | list[str] | None]) -> float:
    """Return the share of queries whose reasoning is not blank; a list of several reasonings counts unless empty.

    >>> reasoned_share(["wool, warm", " ", None, ["wool", "warm"]])
    0.5
    """
    flags = [bool(text.strip()) if isinstance(text, str) else bool(text) for text in reasonings]
    return round(sum(flags) / max(1, len(flags)), 4)


def timed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Call `work` and return its result and the seconds it took."""
    start = time.monotonic()
    return work(), time.monotonic() - start
