"""A server with a flaky model, and an empty file of answers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lrem.curation.answer_store import AnswerStore
from tests.chat_server import serve
from tests.ray.llm.helpers import FlakyModel


@pytest.fixture
def model() -> FlakyModel:
    return FlakyModel()


@pytest.fixture
def url(model: FlakyModel) -> Iterator[str]:
    with serve(model) as address:
        yield address


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[AnswerStore]:
    with AnswerStore(tmp_path / "answers.db") as opened:
        yield opened
