"""One pair of ranks for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.unit.training.two_ranks import TwoRanks


@pytest.fixture(scope="session")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoRanks]:
    ranks = TwoRanks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.close()
