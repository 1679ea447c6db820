"""The work of the tests of resumable steps, in a module that Ray's workers can import."""

import pyarrow as pa

from lrem.data.counters import Counters


class Doubler:
    """n → 2 n; counts rows, odd and even numbers, and fails on one number."""

    def __init__(self, forbidden: int) -> None:
        self.forbidden = forbidden

    def __call__(self, part: pa.Table) -> tuple[pa.Table, Counters]:
        numbers = part["n"].to_pylist()
        if self.forbidden in numbers:
            raise ValueError(f"{self.forbidden} is forbidden")
        odd = sum(n % 2 for n in numbers)
        return pa.table({"n": [2 * n for n in numbers]}), {"rows": len(numbers), "kinds": [odd, len(numbers) - odd]}
