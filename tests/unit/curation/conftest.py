"""Fixtures shared by the tests of imports."""

from pathlib import Path

import pytest

from tests.unit.curation.helpers import write_text


@pytest.fixture
def shop(tmp_path: Path) -> dict[str, str]:
    """A catalogue and queries with ids, without judgements: settings of `SourcesConfig`."""
    return {
        "catalogue": write_text(tmp_path / "items.csv", "item_id,title\n1,red coat\n2,blue hat\n"),
        "queries": write_text(tmp_path / "queries.csv", "query_id,query\nq1,coat\nq2,hat\n"),
    }
