"""One Ray cluster for all tests of curation, and one run with language models."""

from collections.abc import Iterator

import pytest

from lrem.config import load_config
from ray_apps.cluster.session import cluster
from ray_apps.curation import curate
from tests.chat_server import Chat, serve
from tests.ray.curation.small_shop import GRADES, KEYWORDS, LlmRun, small_shop, with_llms


@pytest.fixture(scope="package")
def ray_cluster() -> Iterator[None]:
    """Keep one cluster of four CPUs up; `cluster` in the code under test joins it."""
    with cluster(load_config(None, ["ray.num_cpus=4"])):
        yield


@pytest.fixture(scope="package")
def llm_run(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> LlmRun:
    """A run of the small shop in which every question is answered at once."""
    chat = Chat(KEYWORDS, GRADES)
    with serve(chat) as url:
        config = with_llms(small_shop(tmp_path_factory.mktemp("llm_run")), url)
        return LlmRun(config, curate.run(config), chat.calls)
